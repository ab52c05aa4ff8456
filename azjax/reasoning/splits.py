"""Which programs are for training and which for testing: by what they mean, not by how they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from azjax.config import require, require_number
from azjax.reasoning.enumeration import enumerate_programs
from azjax.reasoning.language import Program
from azjax.reasoning.verification import probe
from azjax.types import Array

__all__ = ["LARGEST_SPLIT", "Split", "make_split"]

LARGEST_SPLIT: Final = 3
"""Lines up to which all programs are enumerated."""
_CHUNK: Final = 2048


class Split(NamedTuple):
    """All meanings of programs with one list as input, each under the length of the shortest program that has it.

    Constants, identities and programs that fail on most probes are not in it, for they may not be proposed.
    """

    programs: tuple[Program, ...]  # by length, the first program of each meaning, [C]
    meanings: tuple[np.ndarray, ...]  # by length, uint32 [C, 2]
    tested: tuple[np.ndarray, ...]  # by length, bool [C] held out; all False for one line

    @property
    def held_out(self) -> np.ndarray:
        """Meanings that may not be proposed, uint32 `[H, 2]`."""
        return np.concatenate([m[t] for m, t in zip(self.meanings, self.tested, strict=True)])

    def test_programs(self, lines: int) -> Program:
        """The held-out programs of a length `[N]`; with one line, of which none is held out, all of them."""
        wanted = self.tested[lines - 1] if lines > 1 else slice(None)
        return jax.tree.map(lambda x: x[wanted], self.programs[lines - 1])  # type: ignore[no-any-return]

    def pool(self, lines: int) -> Program:
        """The programs of up to so many lines that may be trained on `[P]`, a program for each meaning."""
        kept = [jax.tree.map(lambda x, t=t: x[~t], p) for p, t in zip(self.programs, self.tested, strict=True)]
        return jax.tree.map(lambda *x: np.concatenate(x), *kept[:lines])  # type: ignore[no-any-return]


def make_split(lines: int = LARGEST_SPLIT, *, share: float = 0.2) -> Split:
    """Sorts all programs of up to so many lines by meaning and holds some meanings out.

    Of the meanings that need two lines or more, those are held out whose hash, read as a fraction, is below `share`:
    so the test set is the same everywhere and no program of any length with such a meaning can be trained on.

    Args:
      lines: 1 to ``LARGEST_SPLIT``; 3 take some seconds.
      share: part of the meanings that is held out.

    Raises:
      ConfigError: if a number is out of range.
    """
    require(1 <= lines <= LARGEST_SPLIT, f"lines is {lines}; a split has 1 to {LARGEST_SPLIT}")
    require_number("share", share, 0.0, 1.0)
    meaning_of = jax.jit(lambda program: (lambda m: (m.hash, m.informative))(probe(program)))
    known: set[tuple[int, int]] = set()
    programs, meanings, tested = [], [], []
    for length in range(1, lines + 1):
        candidates = enumerate_programs(length)
        hashes, informative = _in_chunks(meaning_of, candidates)
        first = _first_of_each(hashes, informative, known)
        programs.append(jax.tree.map(lambda x, first=first: np.asarray(x)[first], candidates))
        meanings.append(hashes[first])
        tested.append((hashes[first, 0] < share * 2.0**32) & (length > 1))
    return Split(tuple(programs), tuple(meanings), tuple(tested))


def _in_chunks(function: Callable[[Program], tuple[Array, Array]], programs: Program) -> tuple[np.ndarray, np.ndarray]:
    number = len(programs.signature)
    padded = jax.tree.map(lambda x: np.resize(x, (-(-number // _CHUNK) * _CHUNK, *x.shape[1:])), programs)
    parts = []
    for start in range(0, number, _CHUNK):
        part = jax.tree.map(lambda x, start=start: jnp.asarray(x[start : start + _CHUNK], jnp.int32), padded)
        parts.append(jax.device_get(function(part)))
    return tuple(np.concatenate(x)[:number] for x in zip(*parts, strict=True))  # type: ignore[return-value]


def _first_of_each(hashes: np.ndarray, informative: np.ndarray, known: set[tuple[int, int]]) -> np.ndarray:
    """Indices of the first program of each meaning that is not known yet; all of them are known then."""
    first = []
    for n, (a, b) in enumerate(hashes.tolist()):
        if (a, b) not in known:
            known.add((a, b))
            if informative[n]:
                first.append(n)
    return np.array(first, int)
