"""The Absolute Zero Reasoner's world, wholly in XLA: language, interpreter, verification, buffers, tasks.

Pure functions over arrays; `docs/reasoning.md` describes them.
"""

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
    "TASKS",
    "VOCABULARY",
    "Form",
    "GrammarState",
    "Meaning",
    "Program",
    "Task",
    "Triplet",
    "TripletBuffer",
    "Value",
    "Verdict",
    "advance",
    "allowed",
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
    "parse_program",
    "parse_value",
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
