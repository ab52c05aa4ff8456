"""What the loop of propose, verify and solve asks of a world of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from azjax.types import Array, Key

__all__ = ["Domain", "Proposals"]


class Proposals(NamedTuple):
    """`B` proposals and what verification found."""

    item: Any  # [B] the tasks, as the domain keeps them; meaningful where accepted
    formatted: Array  # bool [B] the answer was complete and of the right form
    admissible: Array  # bool [B] formatted and not of the test set: what a leaky gate may let through
    accepted: Array  # bool [B] passed every gate: it may be learned from
    meaning: Array  # uint32 [B, 2] equal for proposals with the same meaning
    level: Array  # int32 [B] how long or deep each is


class Domain(Protocol):
    """A world of tasks: encode, parse, verify, check, hash, as pure functions.

    All take and give batches with one leading axis; `task` is static, an index into `tasks`. `memory` is what the
    domain remembers of earlier proposals, of fixed shape; it is never empty. `level` int32 [] bounds how hard tasks may
    be, from 1 to `levels`.
    """

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the task types."""
        ...

    @property
    def levels(self) -> int:
        """The highest level."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of tokens; token 0 fills up."""
        ...

    def proposal_tokens(self, task: int) -> int:
        """Tokens of the longest proposal."""
        ...

    def answer_tokens(self, task: int) -> int:
        """Tokens of the longest answer."""
        ...

    def allowed(self, state: Any) -> Array:
        """The grammar: which tokens may follow a single state, bool `[vocabulary]`."""
        ...

    def advance(self, state: Any, token: Array) -> Any:
        """The grammar: a single state after a token."""
        ...

    def init(self) -> Any:
        """The memory before anything was proposed."""
        ...

    def invite(self, key: Key, memory: Any, task: int, number: int, level: Array) -> tuple[Array, Any, Any]:
        """Prompts for proposers, int32 `[number, W]`; what the grammar expects of each; and context for ``read``."""
        ...

    def read(self, key: Key, task: int, context: Any, state: Any) -> Any:
        """Parses proposals from the grammar's last states, `[B]`; nothing is verified yet."""
        ...

    def draw(self, key: Key, tasks: Sequence[int], number: int, level: Array) -> Sequence[Any]:
        """For each task type, proposals drawn from the grammar, as ``read`` gives them, `[number]`."""
        ...

    def verify(self, tasks: Sequence[int], drafts: Sequence[Any], step: Array) -> Sequence[Proposals]:
        """Passes what ``read`` and ``draw`` gave for each task type through every gate; ``step`` grows by the call."""
        ...

    def remember(self, memory: Any, task: int, proposals: Proposals, step: Array) -> tuple[Any, Array]:
        """Adds what was accepted and is new, and says which that was, bool `[B]`."""
        ...

    def recall(self, key: Key, memory: Any, task: int, number: int) -> Any:
        """Tasks to solve `[number]`: the newest, topped up with uniformly drawn ones."""
        ...

    def pose(self, task: int, item: Any, level: Array) -> tuple[Array, Any]:
        """Prompts for solvers, int32 `[B, W]`, and what the grammar expects of each."""
        ...

    def check(self, task: int, item: Any, state: Any) -> tuple[Array, Array]:
        """Whether answers are of the right form, and whether they are right, both bool `[B]`."""
        ...

    def solution(self, task: int, item: Any) -> Array:
        """A right answer to each, int32 `[B, answer_tokens(task)]`, known from verification."""
        ...

    def executions(self, task: int, *, proposals: int, answers: int, relabelled: int) -> int:
        """How many executions of a program on an input it takes to verify, check and relabel so many."""
        ...

    def relabel(self, task: int, item: Any, state: Any) -> tuple[Any, Array]:
        """The tasks to which the answers given are right, `[B]`, and whether there is one, bool `[B]`."""
        ...
