"""Everything that looks inside a jaxpr: the only file to touch when a release of JAX renames a parameter.

The rest of the package sees `Program` (a closed jaxpr without dead equations), `Equation` and a few "forms" (of scan,
while, cond, gather, scatter). What cannot be read here raises `UnknownForm`, which makes the caller hand that one
equation to `jax.vmap`.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core


class UnknownForm(Exception):
    """An equation does not look as expected (a renamed parameter, a new primitive)."""


class Params(dict):
    """The parameters of an equation; a missing one raises `UnknownForm` instead of `KeyError`."""

    def __missing__(self, name: str) -> Any:
        raise UnknownForm(f"parameter {name!r} not found among {sorted(self)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Literal:
    """A constant operand, as a numpy array of the operand's dtype."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Equation:
    """One primitive application on unbatched shapes.

    Attributes:
      name: primitive name with `-` spelled `_`.
      params: its parameters.
      inputs: variables or `Literal`s, one per operand.
      outputs: variables, one per result (None for a result nobody reads).
      in_avals, out_avals: their unbatched shapes and dtypes.
      programs: those of its parameters that were read already; see `program_in`.
    """

    name: str
    primitive: Any
    params: Params
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    in_avals: tuple[Any, ...]
    out_avals: tuple[Any, ...]
    programs: dict[int, Any] = dataclasses.field(default_factory=dict, repr=False)

    def bind(self, *arrays: Any, **changed: Any) -> list[Any]:
        """Applies the primitive to other operands, with some parameters changed."""
        params = {**self.params, **changed} if changed else self.params
        results = self.primitive.bind(*arrays, **params)
        return list(results) if self.primitive.multiple_results else [results]

    def call(self, *arrays: Any) -> list[Any]:
        """Applies the primitive unchanged; also valid for primitives that carry functions (custom derivatives)."""
        bound = self.primitive.get_bind_params(dict(self.params))
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        results = self.primitive.bind(*functions, *arrays, **params)
        return list(results) if self.primitive.multiple_results else [results]

    def program_in(self, jaxpr: Any) -> "Program":
        """`program(jaxpr)` of a jaxpr among the parameters, which is read once however often it is asked for."""
        if id(jaxpr) not in self.programs:
            self.programs[id(jaxpr)] = program(jaxpr)
        found: Program = self.programs[id(jaxpr)]
        return found

    def has_programs(self) -> bool:
        """True if some parameter holds a jaxpr (control flow, calls, custom derivatives, kernels...)."""
        return any(True for value in self.params.values() for _ in _jaxprs(value))

    def describe(self) -> str:
        """`name(f32[3,2], i32[])`, for lists of fallbacks."""
        return f"{self.name}({', '.join(aval.str_short(short_dtypes=True) for aval in self.in_avals)})"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A closed jaxpr: constants bound, dead equations removed, operands normalised.

    `read_once` holds the variables with exactly one use, as an operand or as a result.
    """

    constants: tuple[tuple[Any, Any], ...]
    inputs: tuple[Any, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Any, ...]
    out_avals: tuple[Any, ...]
    read_once: frozenset[Any]


def trace(function: Callable[..., Any], examples: Sequence[Any]) -> tuple[Program, Any]:
    """Traces `function(*examples)`; returns the program and the shapes of the results, as a pytree."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*examples)
    return program(jaxpr), shapes


def program(jaxpr: Any) -> Program:
    """Normalises a (closed) jaxpr of any supported release."""
    if not _is_jaxpr(jaxpr):
        raise UnknownForm(f"expected a jaxpr, got {type(jaxpr).__name__}")
    consts = tuple(getattr(jaxpr, "consts", ()))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    if len(inner.constvars) != len(consts):
        raise UnknownForm("a jaxpr with unbound constants")
    equations = tuple(_equation(eqn) for eqn in _live(inner))
    outputs = tuple(_operand(atom) for atom in inner.outvars)
    uses = collections.Counter(
        operand for operands in (*(eqn.inputs for eqn in equations), outputs) for operand in operands
        if not isinstance(operand, Literal)
    )  # fmt: skip
    return Program(
        constants=tuple(zip(inner.constvars, consts, strict=True)),
        inputs=tuple(inner.invars),
        equations=equations,
        outputs=outputs,
        out_avals=tuple(atom.aval for atom in inner.outvars),
        read_once=frozenset(variable for variable, count in uses.items() if count == 1),
    )


def _operand(atom: Any) -> Any:
    if isinstance(atom, jex_core.Literal):
        aval: Any = atom.aval
        return Literal(np.asarray(atom.val, dtype=aval.dtype))
    return atom


def _equation(eqn: Any) -> Equation:
    return Equation(
        name=eqn.primitive.name.replace("-", "_"),
        primitive=eqn.primitive,
        params=Params(eqn.params),
        inputs=tuple(_operand(atom) for atom in eqn.invars),
        outputs=tuple(None if isinstance(var, jex_core.DropVar) else var for var in eqn.outvars),
        in_avals=tuple(atom.aval for atom in eqn.invars),
        out_avals=tuple(var.aval for var in eqn.outvars),
    )


def _live(jaxpr: Any) -> list[Any]:
    """The equations some output or side effect depends on, in order."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, jex_core.Literal)}
    live = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(var in needed for var in eqn.outvars):
            live.append(eqn)
            needed.update(atom for atom in eqn.invars if not isinstance(atom, jex_core.Literal))
    return live[::-1]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jex_core.Jaxpr, jex_core.ClosedJaxpr))


def _jaxprs(value: Any) -> Iterator[Any]:
    if _is_jaxpr(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)


def called_program(eqn: Equation) -> Program:
    """The program of a call-like equation (jit, remat, custom derivatives...)."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return eqn.program_in(eqn.params[name])
    raise UnknownForm("a call without a jaxpr")


@dataclasses.dataclass(frozen=True, slots=True)
class ScanForm:
    """`scan`: operands are `num_consts` constants, `num_carry` carries, then the scanned arrays."""

    body: Program
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: Any


def scan_form(eqn: Equation) -> ScanForm:
    """Reads a `scan`."""
    params = eqn.params
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # jax 0.12: one flat tree (constants, carries, scanned)
        try:
            num_consts, num_carry, _ = (len(list(group)) for group in params["ft_in"].unpack())
        except (AttributeError, TypeError, ValueError) as error:
            raise UnknownForm("scan's operand groups") from error
    return ScanForm(
        eqn.program_in(params["jaxpr"]), num_consts, num_carry, params["length"], params["reverse"], params["unroll"]
    )


@dataclasses.dataclass(frozen=True, slots=True)
class WhileForm:
    """`while`: operands are the predicate's constants, the body's constants, then the carries."""

    predicate: Program
    body: Program
    num_predicate_consts: int
    num_body_consts: int


def while_form(eqn: Equation) -> WhileForm:
    """Reads a `while`."""
    params = eqn.params
    return WhileForm(
        eqn.program_in(params["cond_jaxpr"]),
        eqn.program_in(params["body_jaxpr"]),
        params["cond_nconsts"],
        params["body_nconsts"],
    )


def direct_solve(eqn: Equation) -> tuple[Program, slice] | None:
    """The program of a `custom_linear_solve` that computes the solution, and which operands before b it takes.

    None if it loops, as iterative methods do: their derivative is not that of their steps.
    """
    try:
        jaxpr, lengths = eqn.params["jaxprs"].solve, eqn.params["const_lengths"]
        start = lengths.matvec + lengths.vecmat
        end = start + lengths.solve
    except AttributeError as error:
        raise UnknownForm("the solver of custom_linear_solve") from error
    solver = eqn.program_in(jaxpr)
    return None if _loops(solver) else (solver, slice(start, end))


def _loops(program: Program) -> bool:
    return any(
        eqn.name in ("while", "scan") or any(_loops(eqn.program_in(j)) for v in eqn.params.values() for j in _jaxprs(v))
        for eqn in program.equations
    )


@dataclasses.dataclass(frozen=True, slots=True)
class CondForm:
    """`cond`: operands are the branch index, then the branches' arguments.

    `platforms` is None, or names per branch the platforms it is meant for (None: the default branch).
    """

    branches: tuple[Program, ...]
    platforms: tuple[Any, ...] | None


def cond_form(eqn: Equation) -> CondForm:
    """Reads a `cond`."""
    branches = tuple(eqn.program_in(branch) for branch in eqn.params["branches"])
    return CondForm(branches, eqn.params.get("branches_platforms"))


@dataclasses.dataclass(frozen=True, slots=True)
class WindowForm:
    """Dimension numbers that gather and scatter share, in gather's words.

    Attributes:
      window_dims: dimensions of the result (scatter: of the updates) that run inside a window.
      collapsed: operand dimensions of window size one that do not appear there.
      index_map: the operand dimension that each index component addresses.
      operand_batching, indices_batching: dimensions that run in parallel.
      clip: out-of-bounds windows are moved inside (otherwise they read or write nothing).
    """

    window_dims: tuple[int, ...]
    collapsed: tuple[int, ...]
    index_map: tuple[int, ...]
    operand_batching: tuple[int, ...]
    indices_batching: tuple[int, ...]
    clip: bool


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def gather_form(params: Params) -> WindowForm:
    """Reads a `gather`."""
    numbers, mode = params["dimension_numbers"], _mode(params)
    try:
        return WindowForm(
            _ints(numbers.offset_dims),
            _ints(numbers.collapsed_slice_dims),
            _ints(numbers.start_index_map),
            _ints(numbers.operand_batching_dims),
            _ints(numbers.start_indices_batching_dims),
            clip=mode in ("CLIP", "PROMISE_IN_BOUNDS"),
        )
    except AttributeError as error:
        raise UnknownForm("gather's dimension numbers") from error


def scatter_form(params: Params) -> WindowForm:
    """Reads a `scatter` of any kind."""
    numbers, mode = params["dimension_numbers"], _mode(params)
    try:
        return WindowForm(
            _ints(numbers.update_window_dims),
            _ints(numbers.inserted_window_dims),
            _ints(numbers.scatter_dims_to_operand_dims),
            _ints(numbers.operand_batching_dims),
            _ints(numbers.scatter_indices_batching_dims),
            clip=mode == "CLIP",
        )
    except AttributeError as error:
        raise UnknownForm("scatter's dimension numbers") from error


def _mode(params: Params) -> str:
    mode = getattr(params["mode"], "name", None)
    if mode not in ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"):
        raise UnknownForm(f"indexing mode {params['mode']}")
    return mode
