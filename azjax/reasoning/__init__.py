"""The Absolute Zero Reasoner, wholly in XLA: language, interpreter, verification, buffers, tasks, model, loop.

Pure functions over arrays; `docs/reasoning.md` describes them.
"""

from azjax.reasoning.arithmetic import ArithmeticDomain
from azjax.reasoning.buffers import (
    Triplet,
    TripletBuffer,
    init_buffer,
    push,
    sample_newest,
    sample_recent,
    sample_uniform,
    zero_triplet,
)
from azjax.reasoning.config import ReasonerConfig
from azjax.reasoning.decoding import Answers, decode
from azjax.reasoning.domain import Domain, Proposals
from azjax.reasoning.enumeration import enumerate_programs
from azjax.reasoning.grammar import (
    GrammarState,
    advance,
    allowed,
    expect_inputs,
    expect_program,
    expect_proposal,
    expect_value,
    read,
    sample_tokens,
    succeeded,
)
from azjax.reasoning.interpreter import execute, trace
from azjax.reasoning.language import Program, Value, equal, is_value, value, zero_program
from azjax.reasoning.lists import ListDomain
from azjax.reasoning.model import MODEL_SIZES, TokenPolicy, policy_of_size
from azjax.reasoning.reasoner import Reasoner, ReasonerState, default_learner, make_reasoner
from azjax.reasoning.tasks import (
    TASKS,
    Task,
    expect_answer,
    expect_task,
    judge,
    prompt_tokens,
    proposer_prompt,
    proposer_reward,
    solver_prompt,
    solver_reward,
)
from azjax.reasoning.text import format_program, format_value, parse_program, parse_value
from azjax.reasoning.tokens import VOCABULARY, detokenize, program_tokens, value_tokens
from azjax.reasoning.verification import Meaning, Verdict, probe, verify
from azjax.reasoning.wellformed import Form, examine

__all__ = [
    "MODEL_SIZES",
    "TASKS",
    "VOCABULARY",
    "Answers",
    "ArithmeticDomain",
    "Domain",
    "Form",
    "GrammarState",
    "ListDomain",
    "Meaning",
    "Program",
    "Proposals",
    "Reasoner",
    "ReasonerConfig",
    "ReasonerState",
    "Task",
    "TokenPolicy",
    "Triplet",
    "TripletBuffer",
    "Value",
    "Verdict",
    "advance",
    "allowed",
    "decode",
    "default_learner",
    "detokenize",
    "enumerate_programs",
    "equal",
    "examine",
    "execute",
    "expect_answer",
    "expect_inputs",
    "expect_program",
    "expect_proposal",
    "expect_task",
    "expect_value",
    "format_program",
    "format_value",
    "init_buffer",
    "is_value",
    "judge",
    "make_reasoner",
    "parse_program",
    "parse_value",
    "policy_of_size",
    "probe",
    "program_tokens",
    "prompt_tokens",
    "proposer_prompt",
    "proposer_reward",
    "push",
    "read",
    "sample_newest",
    "sample_recent",
    "sample_tokens",
    "sample_uniform",
    "solver_prompt",
    "solver_reward",
    "succeeded",
    "trace",
    "value",
    "value_tokens",
    "verify",
    "zero_program",
    "zero_triplet",
]
