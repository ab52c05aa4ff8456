"""Vectorisation with the batch on the minor-most axis.

`minor_vmap(f)` means `jax.vmap(f, in_axes=-1, out_axes=-1)`, but keeps the batch on the last axis of every intermediate
value as well, inside loops too. For programs made of many small arrays, such as rigid-body physics, this is what a SIMD
unit wants: contiguous lanes, no transposes and no batches of 3x3 matrix products.

Inside: `jaxprs` reads traced programs, `interpreter` walks them, `folding` evaluates what is constant, and `rules`,
`indexing`, `linear_algebra`, `elementary` and `control_flow` hold one small rule per primitive. `components` keeps
short vectors apart until a kernel ends, so that XLA:CPU can use SIMD instructions for it. `members` folds the lanes of
a population's members into one axis.
"""

from azjax.batching.api import CPU_BLOCK, list_fallbacks, minor_vmap
from azjax.batching.members import fold_members

__all__ = ["CPU_BLOCK", "fold_members", "list_fallbacks", "minor_vmap"]
