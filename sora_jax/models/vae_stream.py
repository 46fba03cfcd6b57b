"""A clip through a causal network as a scan over chunks, in memory that does not grow with it.

The first frame goes alone, then all chunks have the same number of frames. Only the input, the
output and what one chunk needs are held.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def in_chunks(step: Step, x: jax.Array, taken: int, given: int) -> jax.Array:
    """What a causal network makes of a clip, fed to it chunk by chunk.

    Args:
      step: from a chunk [B, t, ...] and the carry of the one before, None at the start, to its
        result and the carry; the carry keeps its shapes.
      x: [B, 1 + taken k, ...].
      taken, given: frames of each chunk but the first, and of its result.

    Returns:
      [B, 1 + given k, ...].

    Raises:
      ValueError: x is of another length.
    """
    count, left = divmod(x.shape[1] - 1, taken)
    if left:
        raise ValueError(
            f"{x.shape[1]} frames are no 1 + {taken}k: cut the clip to {1 + count * taken}"
        )
    y, carry = step(x[:, :1], None)
    # Written in place; stacked results would have to be copied to lie behind the first.
    out = jnp.zeros((x.shape[0], 1 + count * given, *y.shape[2:]), y.dtype)
    out = lax.dynamic_update_slice_in_dim(out, y, 0, axis=1)

    def body(state: tuple, i: jax.Array) -> tuple[tuple, None]:
        out, carry = state
        chunk = lax.dynamic_slice_in_dim(x, 1 + i * taken, taken, axis=1)
        y, carry = step(chunk, carry)
        return (lax.dynamic_update_slice_in_dim(out, y, 1 + i * given, axis=1), carry), None

    return lax.scan(body, (out, carry), jnp.arange(count))[0][0]
