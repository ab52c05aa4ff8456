r"""Running mean and variance of observations: a pytree, merged exactly over batches and devices.

Each update folds the mean and variance of a batch into those of everything before it (Chan, Golub and LeVeque):

.. math::
    \mu' = \mu + w\,\delta, \qquad
    \sigma'^2 = \sigma^2 + w \left(\sigma_b^2 - \sigma^2 + (1 - w)\,\delta^2\right), \qquad
    w = \frac{n_b}{n + n_b}, \quad \delta = \mu_b - \mu

so the result is the population mean and variance of all rows ever seen, in whatever order and batches they came. Three
things keep it true in float32 over a long run:

* the batch's own moments are taken in two passes around the running mean, over all devices together, so that a feature
  at 10,000 with a standard deviation of 1 keeps its digits, and the spread between devices counts;
* the count is exact past 2^31 (:mod:`azjax.counters`);
* the mean carries its rounding error along (`mean_residual`); otherwise it would freeze as soon as :math:`w \delta`
  fell below the resolution of float32 at its offset, which at 10,000 takes about a thousand updates.

References:
  Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations", The American
  Statistician 37(3), 1983.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import compress
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from azjax.counters import Counter, counter_add, counter_psum, counter_to_float, counter_zero

__all__ = ["DEFAULT_CLIP", "RunningStatistics", "init_statistics", "normalize", "std", "update_statistics"]

DEFAULT_CLIP = 10.0
"""Where :func:`normalize` bounds what it returns unless told otherwise, in standard deviations."""
_LARGEST_MAGNITUDE = 1e15  # 2^27 rows of this magnitude have a sum of squares that float32 still holds.


@flax.struct.dataclass
class RunningStatistics:
    """Statistics of all observation rows seen so far.

    The pytrees have the structure of one observation, without batch axes; leaves that are not floating point, which are
    not normalised, are None.

    Attributes:
      count: number of rows, exact.
      mean: float32 leaves, shaped as the observation; 0 while the count is 0.
      mean_residual: float32 leaves; `mean + mean_residual` is the mean beyond float32 resolution.
      variance: float32 leaves, population variance; 1 while the count is 0.
    """

    count: Counter
    mean: chex.ArrayTree
    mean_residual: chex.ArrayTree
    variance: chex.ArrayTree


def init_statistics(observation_spec: chex.ArrayTree) -> RunningStatistics:
    """Statistics of nothing: count 0, mean 0, variance 1.

    Args:
      observation_spec: shape and type of one observation without batch axes, a pytree of `jax.ShapeDtypeStruct` (or of
        anything else with a shape and a dtype).

    Returns:
      The statistics; leaves of the spec that are not floating point (images, indices, masks) have none.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> spec = {"joints": jax.ShapeDtypeStruct((3,), jnp.float32), "image": jax.ShapeDtypeStruct((8, 8), jnp.uint8)}
      >>> statistics = init_statistics(spec)
      >>> statistics.mean["joints"].tolist(), statistics.mean["image"]
      ([0.0, 0.0, 0.0], None)
    """

    def filled(value: float) -> chex.ArrayTree:
        return jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, value, jnp.float32) if _is_float(leaf) else None, observation_spec
        )

    return RunningStatistics(count=counter_zero(), mean=filled(0.0), mean_residual=filled(0.0), variance=filled(1.0))


def update_statistics(
    statistics: RunningStatistics,
    batch: chex.ArrayTree,
    *,
    mask: chex.Array | None = None,
    axis_name: Hashable | None = None,
) -> RunningStatistics:
    """Folds a batch of observations into the statistics.

    A row, meaning one whole observation with all its leaves, is left out if it is masked, or if any of its features is
    non-finite or beyond 1e15 in magnitude: a diverged lane must not poison the statistics for ever.

    Args:
      statistics: so far; equal on all devices.
      batch: pytree of observations with any common leading axes, such as `[T, B, ...]`; each device's own.
      mask: optional boolean array of the leading axes' shape; rows that are False are left out.
      axis_name: with the name (or a tuple of names) of device axes, the rows of all their devices count as one batch,
        and the result is equal on all of them.

    Returns:
      The new statistics; the same as before if no row is left.

    Raises:
      ValueError: if `batch` has another structure or other feature shapes than the statistics, or its leaves disagree
        about the leading axes.
      AssertionError: if `mask` has another shape than the leading axes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from azjax.counters import counter_to_int
      >>> statistics = init_statistics(jax.ShapeDtypeStruct((2,), jnp.float32))
      >>> batch = jnp.array([[1., 10.], [3., 10.], [jnp.nan, 5.]])
      >>> statistics = update_statistics(statistics, batch)
      >>> statistics.mean.tolist(), statistics.variance.tolist()
      ([2.0, 10.0], [1.0, 0.0])
      >>> counter_to_int(statistics.count)
      2
    """
    features, rebuild = _features(statistics, batch)
    if not features:
        return statistics
    features = [feature._replace(value=feature.value.astype(jnp.float32)) for feature in features]
    valid = _valid_rows(features, mask)
    local_count = jnp.sum(valid, dtype=jnp.uint32)
    if axis_name is None:
        batch_count = counter_add(counter_zero(), local_count)
    else:
        batch_count = counter_psum(local_count, axis_name)
    count = counter_add(statistics.count, batch_count)
    rows = counter_to_float(batch_count)
    weight = rows / jnp.maximum(counter_to_float(count), 1)
    is_first = (statistics.count.high | statistics.count.low) == 0

    def row_mean(value: chex.Array) -> chex.Array:
        total = jnp.sum(value, axis=tuple(range(valid.ndim)))
        total = total if axis_name is None else jax.lax.psum(total, axis_name)
        return total / jnp.maximum(rows, 1)

    def merge(feature: _Feature) -> _Feature:
        select = valid.reshape(valid.shape + (1,) * feature.mean.ndim)
        deviation = jnp.where(select, feature.value - feature.mean, 0)
        offset = row_mean(deviation)
        batch_variance = row_mean(jnp.square(jnp.where(select, deviation - offset, 0)))

        shift = offset - feature.residual
        mean, residual = _two_sum(feature.mean, feature.residual + weight * shift)
        previous = jnp.where(is_first, 0, feature.variance)
        variance = previous + weight * (batch_variance - previous + (1 - weight) * jnp.square(shift))
        variance = jnp.where(rows > 0, jnp.maximum(variance, 0), feature.variance)
        return feature._replace(mean=mean, residual=residual, variance=variance)

    merged = [merge(feature) for feature in features]
    return RunningStatistics(
        count=count,
        mean=rebuild([feature.mean for feature in merged]),
        mean_residual=rebuild([feature.residual for feature in merged]),
        variance=rebuild([feature.variance for feature in merged]),
    )


def std(statistics: RunningStatistics, *, epsilon: float = 1e-6) -> chex.ArrayTree:
    r"""Standard deviations, floored: :math:`\max(\sigma, \epsilon \max(1, |\mu|))`.

    The floor keeps a feature that never moved from being divided by 0. It grows with the mean because below about
    1e-7 of it a float32 feature carries nothing but rounding error, which must not be blown up to unit variance.

    Args:
      statistics: of the observations.
      epsilon: the floor, relative to the mean where that exceeds 1 in magnitude.

    Returns:
      Pytree of float32 leaves, structured as `statistics.mean`; 1 while the count is 0.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> std(init_statistics(jax.ShapeDtypeStruct((2,), jnp.float32))).tolist()
      [1.0, 1.0]
    """
    return jax.tree.map(
        lambda mean, variance: jnp.sqrt(jnp.maximum(variance, jnp.square(epsilon * jnp.maximum(1, jnp.abs(mean))))),
        statistics.mean,
        statistics.variance,
    )


def normalize(
    statistics: RunningStatistics,
    observation: chex.ArrayTree,
    *,
    epsilon: float = 1e-6,
    clip: float | None = DEFAULT_CLIP,
) -> chex.ArrayTree:
    r"""Observations in units of their standard deviations, :math:`(x - \mu) / \mathrm{std}`, clipped to +-`clip`.

    Before the first update the mean is 0 and the standard deviation 1, so observations pass unchanged but for the clip.

    Args:
      statistics: of the observations.
      observation: pytree of observations with any leading axes.
      epsilon: floor of the standard deviations, see :func:`std`.
      clip: bound on the magnitude of the result, or None for no bound.

    Returns:
      Pytree structured and shaped as `observation`, each leaf with its own floating-point type. Leaves without
      statistics pass unchanged.

    Raises:
      ValueError: if `observation` has another structure or other feature shapes than the statistics.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> statistics = init_statistics(jax.ShapeDtypeStruct((), jnp.float32))
      >>> statistics = update_statistics(statistics, jnp.array([1., 3.]))
      >>> normalize(statistics, jnp.array([1., 2., 3., 99.])).tolist()
      [-1.0, 0.0, 1.0, 10.0]
    """

    def scaled(
        mean: chex.Array | None, residual: chex.Array | None, scale: chex.Array | None, value: chex.Array
    ) -> chex.Array:
        if mean is None:
            return value
        value = jnp.asarray(value)
        # The mean is taken off first: it cancels the leading digits exactly, which its residual would have rounded.
        score = (value - mean - residual) / scale
        score = score if clip is None else jnp.clip(score, -clip, clip)
        return score.astype(value.dtype if _is_float(value) else jnp.float32)

    _features(statistics, observation)
    return jax.tree.map(
        scaled,
        statistics.mean,
        statistics.mean_residual,
        std(statistics, epsilon=epsilon),
        observation,
        is_leaf=_is_none,
    )


class _Feature(NamedTuple):
    """One floating-point leaf: its batch of values `[..., *shape]`, and its statistics, each `[*shape]`."""

    value: chex.Array
    mean: chex.Array
    residual: chex.Array
    variance: chex.Array


def _features(
    statistics: RunningStatistics, batch: chex.ArrayTree
) -> tuple[list[_Feature], Callable[[list[chex.Array]], chex.ArrayTree]]:
    """Pairs the leaves that have statistics; also returns how to put new leaves back into the statistics' structure."""
    # jax types a tree's structure as something that cannot be compared.
    structure: Any = jax.tree.structure(statistics.mean, is_leaf=_is_none)
    if structure != jax.tree.structure(batch, is_leaf=_is_none):
        raise ValueError(
            f"observations are structured as {jax.tree.structure(batch)}, their statistics as {structure}."
        )
    means = jax.tree.leaves(statistics.mean, is_leaf=_is_none)
    values = jax.tree.leaves(batch, is_leaf=_is_none)
    present = [mean is not None for mean in means]
    features = [
        _Feature(jnp.asarray(value), *statistic)
        for value, *statistic in zip(
            compress(values, present),
            *map(jax.tree.leaves, (statistics.mean, statistics.mean_residual, statistics.variance)),
            strict=True,
        )
    ]
    for feature in features:
        shape = feature.mean.shape
        if feature.value.shape[feature.value.ndim - len(shape) :] != shape or feature.value.ndim < len(shape):
            expected = ", ".join(map(str, ("...", *shape)))
            raise ValueError(f"expected features of shape [{expected}], got {feature.value.shape}.")

    def rebuild(leaves: list[chex.Array]) -> chex.ArrayTree:
        remaining = iter(leaves)
        return structure.unflatten([next(remaining) if has_statistics else None for has_statistics in present])

    return features, rebuild


def _valid_rows(features: list[_Feature], mask: chex.Array | None) -> chex.Array:
    """Boolean array of the leading axes' shape: rows whose features can all be averaged, and that are not masked."""
    leading = {feature.value.shape[: feature.value.ndim - feature.mean.ndim] for feature in features}
    if len(leading) != 1:
        raise ValueError(f"the leaves of a batch must share their leading axes, got {sorted(leading)}.")
    (shape,) = leading
    valid = jnp.ones(shape, bool)
    if mask is not None:
        chex.assert_shape(mask, shape)
        valid = jnp.asarray(mask).astype(bool)
    for feature in features:
        usable = jnp.abs(feature.value) <= _LARGEST_MAGNITUDE  # False for NaN
        valid &= jnp.all(usable, axis=tuple(range(len(shape), feature.value.ndim)))
    return valid


def _two_sum(a: chex.Array, b: chex.Array) -> tuple[chex.Array, chex.Array]:
    """The rounded sum and its exact rounding error (Knuth), for any order of magnitudes."""
    total = a + b
    b_rounded = total - a
    return total, (a - (total - b_rounded)) + (b - b_rounded)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
