"""Rules for equations that hold programs: calls, loops, branches and custom derivatives.

A loop carry is batched only if a fixed point of the data flow says so: counters stay scalars, and a `while` whose
predicate does not depend on the batch stays a plain `while`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from azjax.batching import jaxprs
from azjax.batching.interpreter import INLINED, Batch, Value, batched, call_traced, rule, run
from azjax.batching.jaxprs import CondForm, Equation, Literal, Program, ScanForm, UnknownForm, WhileForm

Flags = Sequence[bool]
"""Per operand or result: does it carry the batch?"""


# Data flow: which results depend on which batched operands.


def depends(program: Program, flags: Flags) -> list[bool]:
    """Which results of a program are batched, given which inputs are."""
    environment = {variable: False for variable, _ in program.constants}
    environment.update(zip(program.inputs, flags, strict=True))

    def read(operand: Any) -> bool:
        return False if isinstance(operand, Literal) else environment[operand]

    for eqn in program.equations:
        inputs = [read(operand) for operand in eqn.inputs]
        results = _flow(eqn, inputs) if any(inputs) else [False] * len(eqn.outputs)
        environment.update(
            (variable, flag) for variable, flag in zip(eqn.outputs, results, strict=True) if variable is not None
        )
    return [read(operand) for operand in program.outputs]


def _flow(eqn: Equation, flags: Flags) -> list[bool]:
    flow = _FLOWS.get(eqn.name)
    if flow is not None:
        try:
            return flow(eqn, flags)
        except UnknownForm:
            pass
    return [True] * len(eqn.outputs)


def _call_flow(eqn: Equation, flags: Flags) -> list[bool]:
    return depends(jaxprs.called_program(eqn), flags)


def _scan_flow(eqn: Equation, flags: Flags) -> list[bool]:
    form = jaxprs.scan_form(eqn)
    carry, scanned = scan_flags(form, flags)
    return [*carry, *scanned]


def _while_flow(eqn: Equation, flags: Flags) -> list[bool]:
    return while_flags(jaxprs.while_form(eqn), flags)[0]


def _cond_flow(eqn: Equation, flags: Flags) -> list[bool]:
    return cond_flags(jaxprs.cond_form(eqn), flags)


_FLOWS: dict[str, Callable[[Equation, Flags], list[bool]]] = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"), _call_flow),
    "scan": _scan_flow,
    "while": _while_flow,
    "cond": _cond_flow,
}


def _either(left: Flags, right: Flags) -> list[bool]:
    return [a or b for a, b in zip(left, right, strict=True)]


def scan_flags(form: ScanForm, flags: Flags) -> tuple[list[bool], list[bool]]:
    """Batched carries (a fixed point) and batched stacked results."""
    consts, carry = list(flags[: form.num_consts]), list(flags[form.num_consts : form.num_consts + form.num_carry])
    scanned = list(flags[form.num_consts + form.num_carry :])
    while True:
        results = depends(form.body, [*consts, *carry, *scanned])
        grown = _either(carry, results[: form.num_carry])
        if grown == carry:
            return carry, results[form.num_carry :]
        carry = grown


def while_flags(form: WhileForm, flags: Flags) -> tuple[list[bool], bool]:
    """Batched carries (a fixed point) and whether the predicate is batched; if it is, so are all carries."""
    first, second = form.num_predicate_consts, form.num_predicate_consts + form.num_body_consts
    predicate_consts, body_consts, carry = list(flags[:first]), list(flags[first:second]), list(flags[second:])
    while True:
        (predicate,) = depends(form.predicate, [*predicate_consts, *carry])
        grown = [True] * len(carry) if predicate else _either(carry, depends(form.body, [*body_consts, *carry]))
        if grown == carry:
            return carry, predicate
        carry = grown


def cond_flags(form: CondForm, flags: Flags) -> list[bool]:
    """Batched results of a branch: those of any branch; all of them if the index is batched."""
    index, *operands = flags
    results = [index] * len(form.branches[0].outputs)
    for branch in form.branches:
        results = _either(results, depends(branch, operands))
    return results


# Helpers shared by the rules.


def _emit(values: Sequence[Value], flags: Flags, avals: Sequence[Any], batch: Batch) -> list[Any]:
    """Arrays of the values, batched exactly where `flags` says."""
    if any(value.batched and not flag for value, flag in zip(values, flags, strict=True)):
        raise UnknownForm("a result is batched against the data-flow analysis")
    return [
        batch.full(value, aval.shape) if flag else value.array
        for value, flag, aval in zip(values, flags, avals, strict=True)
    ]


def _values(arrays: Sequence[Any], flags: Flags) -> list[Value]:
    return [Value(array, flag) for array, flag in zip(arrays, flags, strict=True)]


class _Moving:
    """Splits operands into trace-time constants, which stay, and the rest, which becomes function arguments."""

    def __init__(self, inputs: Sequence[Value]):
        self.inputs = list(inputs)
        self.places = [i for i, value in enumerate(inputs) if not value.constant]
        self.values = [inputs[i] for i in self.places]
        self.arrays = [value.array for value in self.values]
        self.flags = [value.batched for value in self.values]

    def restore(self, arrays: Sequence[Any]) -> list[Value]:
        values = list(self.inputs)
        for place, value in zip(self.places, _values(arrays, self.flags), strict=True):
            values[place] = value
        return values


# Calls.


@rule(*INLINED)
def call(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Inlined, so that constants reach the inside."""
    return run(jaxprs.called_program(eqn), inputs, batch)


@rule("checkpoint", "remat", "remat2")
def checkpoint(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Rematerialisation stays; inside a derivative that has been taken already, only its barrier is left."""
    program = jaxprs.called_program(eqn)
    moving = _Moving(inputs)
    flags = depends(program, [value.batched for value in inputs])
    prevent_cse = eqn.params["prevent_cse"]

    def body(*arrays: Any) -> list[Any]:
        return _emit(run(program, moving.restore(arrays), batch), flags, program.out_avals, batch)

    if eqn.params["differentiated"]:
        arrays = lax.optimization_barrier(moving.arrays) if prevent_cse else moving.arrays
        return _values(body(*arrays), flags)
    results = jax.checkpoint(body, prevent_cse=prevent_cse, policy=eqn.params["policy"])(*moving.arrays)
    return _values(results, flags)


@rule("custom_linear_solve")
def custom_linear_solve(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A direct method, kept from LAPACK, to which `jax.vmap` would leave its factorisation and which can hang."""
    direct = jaxprs.direct_solve(eqn)
    if direct is None or not all(_inexact(eqn.out_avals)):
        return None
    solver, constants = direct
    first, everywhere = sum(eqn.params["const_lengths"]), [True] * len(eqn.out_avals)

    def forward(values: Sequence[Value]) -> list[Any]:
        return _emit(run(solver, [*values[constants], *values[first:]], batch), everywhere, eqn.out_avals, batch)

    return with_original_derivative(eqn, inputs, batch, forward)


# Loops and branches.


@rule("scan")
def scan(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """Carries that no batched value reaches, such as counters, stay shared."""
    form = jaxprs.scan_form(eqn)
    flags, stacked_flags = scan_flags(form, [value.batched for value in inputs])
    last = form.num_consts + form.num_carry
    consts, carry, scanned = inputs[: form.num_consts], inputs[form.num_consts : last], inputs[last:]
    scanned_flags = [value.batched for value in scanned]
    avals = form.body.out_avals

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        results = run(form.body, [*consts, *_values(carry, flags), *_values(xs, scanned_flags)], batch)
        arrays = _emit(results, [*flags, *stacked_flags], avals, batch)
        return arrays[: form.num_carry], arrays[form.num_carry :]

    first = _emit(carry, flags, eqn.in_avals[form.num_consts : last], batch)
    final, stacked = lax.scan(
        step, first, [value.array for value in scanned], form.length, reverse=form.reverse, unroll=form.unroll
    )
    return [*_values(final, flags), *_values(stacked, stacked_flags)]


@rule("while")
def while_(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A lane whose own predicate is false keeps its state until the last lane is done."""
    form = jaxprs.while_form(eqn)
    first, second = form.num_predicate_consts, form.num_predicate_consts + form.num_body_consts
    predicate_consts, body_consts, carry = inputs[:first], inputs[first:second], inputs[second:]
    flags, per_lane = while_flags(form, [value.batched for value in inputs])
    avals = eqn.in_avals[second:]
    start = _emit(carry, flags, avals, batch)

    def predicate(state: Sequence[Any]) -> Any:
        (result,) = run(form.predicate, [*predicate_consts, *_values(state, flags)], batch)
        return batch.full(result, ()) if per_lane else result.array

    def body(state: Sequence[Any]) -> Sequence[Any]:
        return _emit(run(form.body, [*body_consts, *_values(state, flags)], batch), flags, avals, batch)

    if not per_lane:
        return _values(lax.while_loop(predicate, body, start), flags)

    def masked_body(loop: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
        running, state = loop
        state = [_where(running, new, old) for new, old in zip(body(state), state, strict=True)]
        return predicate(state), state

    _, state = lax.while_loop(lambda loop: jnp.any(loop[0]), masked_body, (predicate(start), start))
    return _values(state, flags)


def _where(lanes: Any, new: Any, old: Any) -> Any:
    """Selects per lane; `lanes` is `[B]`."""
    return lax.select(lax.broadcast_in_dim(lanes, new.shape, (new.ndim - 1,)), new, old)


@rule("cond")
def cond(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """One branch if the index is shared by all lanes, else all branches and a selection per lane."""
    form = jaxprs.cond_form(eqn)
    index, *operands = inputs
    flags = cond_flags(form, [value.batched for value in inputs])
    avals = form.branches[0].out_avals
    if index.constant and form.platforms is None:
        chosen = int(np.clip(index.array, 0, len(form.branches) - 1))
        return run(form.branches[chosen], operands, batch)
    if index.batched:
        return batched(*_select_branch(form, index.array, operands, avals, batch))

    moving = _Moving(operands)

    def as_function(branch: Program) -> Callable[..., list[Any]]:
        return lambda *arrays: _emit(run(branch, moving.restore(arrays), batch), flags, avals, batch)

    functions = [as_function(branch) for branch in form.branches]
    if form.platforms is None:
        return _values(lax.switch(index.array, functions, *moving.arrays), flags)
    named = {
        "default" if name is None else name: function
        for names, function in zip(form.platforms, functions, strict=True)
        for name in (names or (None,))
    }
    return _values(lax.platform_dependent(*moving.arrays, **named), flags)


def _select_branch(
    form: CondForm, index: Any, operands: Sequence[Value], avals: Sequence[Any], batch: Batch
) -> list[Any]:
    everywhere = [True] * len(avals)
    chosen = _emit(run(form.branches[0], operands, batch), everywhere, avals, batch)
    for number, branch in enumerate(form.branches[1:], start=1):
        results = _emit(run(branch, operands, batch), everywhere, avals, batch)
        lanes = index if index.dtype == bool else index >= number
        chosen = [_where(lanes, new, old) for new, old in zip(results, chosen, strict=True)]
    return chosen


# Custom derivatives.


def _inexact(avals: Sequence[Any]) -> list[bool]:
    return [jnp.issubdtype(aval.dtype, jnp.inexact) for aval in avals]


@rule("custom_jvp_call")
def custom_jvp(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A `jax.custom_jvp` function of batched arrays whose rule is the original one."""
    program = jaxprs.called_program(eqn)
    if not all(_inexact(eqn.out_avals)):
        return None
    everywhere = [True] * len(eqn.out_avals)

    def forward(values: Sequence[Value]) -> list[Any]:
        return _emit(run(program, values, batch), everywhere, eqn.out_avals, batch)

    return with_original_derivative(eqn, inputs, batch, forward)


def with_original_derivative(
    eqn: Equation, inputs: Sequence[Value], batch: Batch, forward: Callable[[Sequence[Value]], list[Any]]
) -> list[Value]:
    """`forward`, differentiated by the equation's own derivative, which is walked like any other program."""
    moving = _Moving(inputs)
    smooth = _inexact([eqn.in_avals[i] for i in moving.places])
    everywhere = [True] * len(eqn.out_avals)

    @jax.custom_jvp
    def function(*arrays: Any) -> list[Any]:
        return forward(moving.restore(arrays))

    @function.defjvp
    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        def jvp(moved: list[Any], directions: list[Any]) -> tuple[list[Any], list[Any]]:
            def original(*chosen: Any) -> list[Any]:
                return eqn.call(*_place(moving, _merge(moved, chosen, smooth)))

            chosen = [array for array, flag in zip(moved, smooth, strict=True) if flag]
            return jax.jvp(original, chosen, directions)

        points = _values(primals, moving.flags)
        directions = [Value(t, v.batched) for t, v, flag in zip(tangents, points, smooth, strict=True) if flag]
        results = _call_grouped(jvp, points, directions, batch)
        arrays = _emit(results, everywhere * 2, [*eqn.out_avals, *eqn.out_avals], batch)
        return arrays[: len(everywhere)], arrays[len(everywhere) :]

    return batched(*function(*moving.arrays))


@rule("custom_vjp_call", "custom_vjp_call_jaxpr")
def custom_vjp(eqn: Equation, inputs: Sequence[Value], batch: Batch) -> list[Value] | None:
    """A `jax.custom_vjp` function of batched arrays; its backward pass runs the original forward and backward rules."""
    program = jaxprs.called_program(eqn)
    if not all(_inexact(eqn.out_avals)):
        return None
    moving = _Moving(inputs)
    smooth = _inexact([eqn.in_avals[i] for i in moving.places])
    everywhere = [True] * len(eqn.out_avals)

    @jax.custom_vjp
    def function(*arrays: Any) -> list[Any]:
        return _emit(run(program, moving.restore(arrays), batch), everywhere, eqn.out_avals, batch)

    def forward(*arrays: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return function(*arrays), arrays

    def backward(arrays: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
        def vjp(moved: list[Any], directions: list[Any]) -> tuple[Any, ...]:
            def original(*chosen: Any) -> list[Any]:
                return eqn.call(*_place(moving, _merge(moved, chosen, smooth)))

            chosen = [array for array, flag in zip(moved, smooth, strict=True) if flag]
            return jax.vjp(original, *chosen)[1](directions)

        points = _values(arrays, moving.flags)
        avals = [eqn.in_avals[i] for i, flag in zip(moving.places, smooth, strict=True) if flag]
        results = iter(
            batch.full(result, aval.shape)
            for result, aval in zip(_call_grouped(vjp, points, batched(*cotangents), batch), avals, strict=True)
        )
        gradients = []
        for flag, point in zip(smooth, points, strict=True):
            gradient = next(results) if flag else None
            gradients.append(gradient if gradient is None or point.batched else gradient.sum(-1))
        return tuple(gradients)

    function.defvjp(forward, backward)
    return batched(*function(*moving.arrays))


def _merge(moved: Sequence[Any], chosen: Sequence[Any], smooth: Flags) -> list[Any]:
    """`moved` with its differentiable entries replaced by `chosen`."""
    replacements = iter(chosen)
    return [next(replacements) if flag else array for array, flag in zip(moved, smooth, strict=True)]


def _place(moving: _Moving, moved: Sequence[Any]) -> list[Any]:
    """All unbatched operands of the equation: its constants and the moved ones."""
    operands = [value.array for value in moving.inputs]
    for place, array in zip(moving.places, moved, strict=True):
        operands[place] = array
    return operands


def _call_grouped(
    function: Callable[[list[Any], list[Any]], Any], points: list[Value], directions: list[Value], batch: Batch
) -> list[Value]:
    count = len(points)
    results, _ = call_traced(
        lambda *flat: function(list(flat[:count]), list(flat[count:])), [*points, *directions], batch
    )
    return results
