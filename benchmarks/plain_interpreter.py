"""The list-processing language in plain Python: what azjax/reasoning/interpreter.py is compared with.

It shares the tables of names with azjax and nothing else; the functions are Python's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from azjax.reasoning.language import LAMBDAS, LARGEST, MAX_INPUTS, MAX_LENGTH, OPERATIONS

Plain = int | list[int]

LAMBDA: dict[str, Callable[..., Any]] = {
    "+1": lambda x: x + 1,
    "-1": lambda x: x - 1,
    "*2": lambda x: x * 2,
    "/2": lambda x: x // 2,
    "*(-1)": lambda x: -x,
    "**2": lambda x: x**2,
    "*3": lambda x: x * 3,
    "/3": lambda x: x // 3,
    "*4": lambda x: x * 4,
    "/4": lambda x: x // 4,
    ">0": lambda x: x > 0,
    "<0": lambda x: x < 0,
    "even": lambda x: x % 2 == 0,
    "odd": lambda x: x % 2 == 1,
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "min": min,
    "max": max,
}


def access(n: int, xs: list[int]) -> int:
    if n < 0:  # Python would count from the end
        raise IndexError(n)
    return xs[n]


def scan(f: Callable[[int, int], int], xs: list[int]) -> list[int]:
    result = xs[:1]
    for x in xs[1:]:
        result.append(f(result[-1], x))
    return result


FUNCTION: dict[str, Callable[..., Plain]] = {
    "Head": lambda xs: xs[0],
    "Last": lambda xs: xs[-1],
    "Take": lambda n, xs: xs[:n],
    "Drop": lambda n, xs: xs[n:],
    "Access": access,
    "Minimum": min,
    "Maximum": max,
    "Reverse": lambda xs: xs[::-1],
    "Sort": sorted,
    "Sum": sum,
    "Map": lambda f, xs: [f(x) for x in xs],
    "Filter": lambda f, xs: [x for x in xs if f(x)],
    "Count": lambda f, xs: len([x for x in xs if f(x)]),
    "ZipWith": lambda f, xs, ys: [f(x, y) for x, y in zip(xs, ys, strict=False)],
    "Scanl1": scan,
}

_BY_NUMBER = [(FUNCTION.get(o.name), len(o.arguments)) for o in OPERATIONS]
_LAMBDA_BY_NUMBER = [LAMBDA[f.name] for f in LAMBDAS]


def in_bounds(value: Plain) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_LENGTH and all(-LARGEST <= x <= LARGEST for x in value)
    return -LARGEST <= value <= LARGEST


def run(lines: Sequence[Sequence[int]], inputs: Sequence[Plain]) -> Plain | None:
    """The output of a well-formed program, None if there is none.

    Args:
      lines: the four numbers of each line, lines of zeros at the end.
      inputs: one or two.
    """
    variables: list[Any] = [*inputs, *[None] * (MAX_INPUTS - len(inputs))]
    result: Plain = inputs[0]
    for operation, function, first, second in lines:
        if operation == 0:
            break
        call, arity = _BY_NUMBER[operation - 1]
        arguments = [variables[first]] if arity == 1 else [variables[first], variables[second]]
        if function:
            arguments.insert(0, _LAMBDA_BY_NUMBER[function - 1])
        try:
            result = call(*arguments)  # type: ignore[misc]
        except (IndexError, ValueError):  # no such item, minimum of nothing
            return None
        if not in_bounds(result):
            return None
        variables.append(result)
    return result
