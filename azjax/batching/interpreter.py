"""The walk over a traced program that keeps the batch on the last axis of every batched value."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from azjax.batching import jaxprs
from azjax.batching.folding import fold
from azjax.batching.jaxprs import Equation, Literal, Program, UnknownForm

FOLD_LIMIT = 1 << 16
"""Constants with more elements than this are left to XLA."""

INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
"""Calls that leave no trace in the result."""


class Value:
    """An intermediate value.

    Attributes:
      array: `[*shape, B]` if batched, else `[*shape]`; a numpy array is a constant known while tracing.
      batched: whether the batch axis is there.
      parts: see `joined_later`; None for every other value.
      axis: the axis that the parts are slices of.
    """

    __slots__ = ("_array", "axis", "batched", "parts")

    def __init__(self, array: Any, batched: bool, parts: Sequence[Any] | None = None, axis: int = 0):
        self._array, self.batched, self.parts, self.axis = array, batched, parts, axis

    @property
    def array(self) -> Any:
        """See above; parts are joined when it is first asked for."""
        if self._array is None and self.parts is not None:
            self._array = lax.concatenate(self.parts, self.axis)
        return self._array

    @property
    def constant(self) -> bool:
        """Known while tracing."""
        return not self.batched and isinstance(self._array, np.ndarray)


def joined_later(parts: Sequence[Any], axis: int) -> Value:
    """A batched value that consists of slices of extent 1 along an axis; see `azjax.batching.components`."""
    return Value(None, True, parts, axis) if len(parts) > 1 else Value(parts[0], True)


@dataclasses.dataclass(slots=True)
class Batch:
    """What every rule needs to know: the batch size, and where to note what was left to `jax.vmap`."""

    size: int
    fallbacks: list[str] | None = None
    warned: set[str] = dataclasses.field(default_factory=set)

    def full(self, value: Value, shape: Sequence[int]) -> Any:
        """The value as a batched array `[*shape, B]`."""
        if value.batched:
            return value.array
        return lax.broadcast_in_dim(value.array, (*shape, self.size), tuple(range(len(shape))))

    def warn(self, name: str, reason: str) -> None:
        """Warns once per primitive."""
        if name not in self.warned:
            self.warned.add(name)
            warnings.warn(f"minor_vmap leaves `{name}` to jax.vmap: {reason}", stacklevel=2)


Rule = Callable[[Equation, Sequence[Value], Batch], "list[Value] | None"]
"""Re-emits one equation that has a batched operand. None means: not this case, leave it to `jax.vmap`."""

RULES: dict[str, Rule] = {}
"""Primitive name (with `_` for `-`) to rule; filled by the modules that define the rules."""


COMPONENT_RULES: dict[str, Rule] = {}
"""What is tried first; see `azjax.batching.components`."""


def rule(*names: str, table: dict[str, Rule] = RULES) -> Callable[[Rule], Rule]:
    """Decorator that enters a function into a table."""

    def enter(function: Rule) -> Rule:
        for name in names:
            table[name] = function
        return function

    return enter


component_rule = functools.partial(rule, table=COMPONENT_RULES)


def batched(*arrays: Any) -> list[Value]:
    """Values of arrays whose last axis is the batch."""
    return [Value(array, True) for array in arrays]


def known(array: Any, aval: Any) -> Value:
    """An unbatched value; small concrete arrays become numpy constants."""
    if isinstance(array, (np.ndarray, np.generic, bool, int, float, complex)):
        return Value(np.asarray(array, dtype=aval.dtype), False)
    if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
        plain = not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
        if plain and array.size <= FOLD_LIMIT and array.is_fully_addressable:
            return Value(np.asarray(array), False)
    return Value(array, False)


def run(program: Program, inputs: Sequence[Value], batch: Batch) -> list[Value]:
    """Evaluates a program whose inputs may carry the batch on their last axis."""
    environment: dict[Any, Value] = {}
    for variable, constant in program.constants:
        environment[variable] = known(constant, variable.aval)

    def bind(variable: Any, value: Value) -> None:
        shared = value.parts is not None and variable not in program.read_once
        environment[variable] = Value(value.array, True) if shared else value

    for variable, value in zip(program.inputs, inputs, strict=True):
        bind(variable, value)

    def read(operand: Any) -> Value:
        return Value(operand.value, False) if isinstance(operand, Literal) else environment[operand]

    for eqn in program.equations:
        results = evaluate(eqn, [read(operand) for operand in eqn.inputs], batch)
        for variable, result in zip(eqn.outputs, results, strict=True):
            if variable is not None:
                bind(variable, result)
    return [read(operand) for operand in program.outputs]


def evaluate(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value]:
    """Evaluates one equation: by its rule, by folding, unchanged, or by `jax.vmap`."""
    if not any(value.batched for value in inputs):
        return evaluate_unbatched(eqn, inputs, batch)
    if eqn.has_programs() and eqn.name not in INLINED:
        for value in inputs:
            _ = value.array  # parts are joined out here, where all that comes later can see it
    for handler in (COMPONENT_RULES.get(eqn.name), RULES.get(eqn.name)):
        if handler is not None:
            try:
                results = handler(eqn, inputs, batch)
            except UnknownForm as error:
                batch.warn(eqn.name, str(error))
                results = None
            if results is not None:
                return results
    if eqn.name not in RULES and eqn.has_programs():
        batch.warn(eqn.name, "it holds programs and has no rule")
    return fall_back(eqn, inputs, batch)


def evaluate_unbatched(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value]:
    """No operand is batched: constants are folded, the rest is emitted as it was."""
    if eqn.name in ("jit", "pjit"):
        with contextlib.suppress(UnknownForm):
            return run(jaxprs.called_program(eqn), inputs, batch)
    arrays = [value.array for value in inputs]
    small = all(np.prod(aval.shape, dtype=np.int64) <= FOLD_LIMIT for aval in (*eqn.in_avals, *eqn.out_avals))
    if small and all(value.constant for value in inputs):
        folded = fold(eqn, arrays)
        if folded is not None:
            return [Value(array, False) for array in folded]
    return [Value(array, False) for array in eqn.call(*arrays)]


def fall_back(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value]:
    """Leaves one equation to `jax.vmap`, batch on the last axis on both sides."""
    if batch.fallbacks is not None:
        batch.fallbacks.append(eqn.describe())
    axes = tuple(-1 if value.batched else None for value in inputs)
    mapped = jax.vmap(lambda *arrays: eqn.call(*arrays), in_axes=axes, out_axes=-1, axis_size=batch.size)
    return batched(*mapped(*(settle(value.array) if value.batched else value.array for value in inputs)))


def settle(array: Any) -> Any:
    """The same array, written to memory before anything else reads it (on a CPU; elsewhere a no-op).

    `jax.vmap` transposes the operands of what is left to it, and XLA:CPU fuses such a transposition with the arithmetic
    before it, which then runs across the lanes, up to twenty times slower. A loop is the one thing XLA does not fuse
    through; the barrier keeps JAX from seeing that the loop copies.
    """
    elements = array.size // max(array.shape[-1], 1)
    if elements < 2 or jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        return array
    parts = next(divisor for divisor in range(2, elements + 1) if elements % divisor == 0)

    def copy(array: Any) -> Any:
        pieces = lax.reshape(array, (parts, elements // parts, array.shape[-1]))
        return lax.reshape(lax.map(lax.optimization_barrier, pieces), array.shape)

    return lax.platform_dependent(array, cpu=copy, default=lambda array: array)


def call_traced(function: Callable[..., Any], inputs: Sequence[Value], batch: Batch) -> tuple[list[Value], Any]:
    """Traces `function` on unbatched shapes and runs it; returns flat results and the results' shapes as a pytree."""
    examples = [example(value) for value in inputs]
    program, shapes = jaxprs.trace(function, examples)
    return run(program, inputs, batch), shapes


def example(value: Value) -> jax.ShapeDtypeStruct:
    """The unbatched shape and dtype of a value (and, inside `shard_map`, the axes it varies over)."""

    def pick(array: Any) -> Any:
        return lax.index_in_dim(array, 0, array.ndim - 1, keepdims=False) if value.batched else array

    return jax.eval_shape(pick, value.array)
