"""Frames through a network tile by tile, blended where tiles overlap."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def in_tiles(
    step: Step, x: jax.Array, carry: Any, *, tile: int, overlap: int, taken: int, given: int
) -> tuple[jax.Array, Any]:
    """What a network makes of frames, fed to it in tiles one after the other.

    Each pixel of the result is a mean of the tiles that hold it, whose weights go linearly from 0
    to 1 over the overlap. Only the input, the output, the carries and what one tile needs are held.

    Args:
      step: from frames [B, T, h, w, C] and a carry to its result and the carry.
      x: [B, T, taken n, taken m, C].
      carry: what this function returned for the frames before; None at the start.
      tile: side of a tile, in latents.
      overlap: of two neighbours, in latents; they overlap more where tiles do not fit evenly.
      taken, given: pixels of a side of x, and of the result, for each latent.

    Returns:
      [B, T', given n, given m, C'], float32 unless one tile covers all, and the carries.

    Raises:
      ValueError: an overlap that leaves no room between tiles.
    """
    if not 0 < overlap <= tile // 2:
        raise ValueError(
            f"tiles of {tile} latents cannot overlap by {overlap}: choose from 1 to {tile // 2}"
        )
    rows, columns = (_starts(size // taken, tile, overlap) for size in x.shape[2:4])
    if len(rows) == len(columns) == 1:
        return step(x, carry)
    sides = [min(tile, size // taken) for size in x.shape[2:4]]
    row_weights, column_weights = (
        _weights(starts, side, given) for starts, side in zip((rows, columns), sides)
    )
    pieces = (x.shape[0], x.shape[1], *(side * taken for side in sides), x.shape[4])
    one = jax.tree.map(lambda c: jax.ShapeDtypeStruct(c.shape[1:], c.dtype), carry)
    like, _ = jax.eval_shape(step, jax.ShapeDtypeStruct(pieces, x.dtype), one)
    whole = (*like.shape[:2], *(size // taken * given for size in x.shape[2:4]), like.shape[4])

    def body(out: jax.Array, inputs: tuple) -> tuple[jax.Array, Any]:
        row, column, row_weight, column_weight, before = inputs
        piece = lax.dynamic_slice(x, (0, 0, row * taken, column * taken, 0), pieces)
        y, after = step(piece, before)
        y = y * row_weight.reshape(1, 1, -1, 1, 1) * column_weight.reshape(1, 1, 1, -1, 1)
        start = (0, 0, row * given, column * given, 0)
        y = y + lax.dynamic_slice(out, start, y.shape)
        return lax.dynamic_update_slice(out, y, start), after

    # One tile a row of these: all tiles of the first row of tiles, then those of the next.
    grid = np.indices((len(rows), len(columns))).reshape(2, -1)
    places = (np.array(rows)[grid[0]], np.array(columns)[grid[1]])
    weights = (row_weights[grid[0]], column_weights[grid[1]])
    return lax.scan(body, jnp.zeros(whole, jnp.float32), (*places, *weights, carry))


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover a side, as evenly as latents allow."""
    count = max(1, -(-(size - overlap) // (tile - overlap)))
    return [i * (size - tile) // max(1, count - 1) for i in range(count)]


def _weights(starts: Sequence[int], side: int, given: int) -> np.ndarray:
    """Of each tile along one axis, float32 [tiles, given side]: they add up to one everywhere."""
    at = np.arange(side * given) + 0.5
    rows = np.ones((len(starts), side * given))
    for i in range(len(starts) - 1):
        shared = (starts[i] + side - starts[i + 1]) * given
        rows[i] = np.minimum(rows[i], (side * given - at) / shared)
        rows[i + 1] = np.minimum(rows[i + 1], at / shared)
    total = np.zeros((starts[-1] + side) * given)
    spans = [slice(start * given, (start + side) * given) for start in starts]
    for row, span in zip(rows, spans):
        total[span] += row
    return np.float32([row / total[span] for row, span in zip(rows, spans)])
