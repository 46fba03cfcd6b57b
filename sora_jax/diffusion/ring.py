"""A clip whose time is a ring: the last frame is followed by the first, and none is special.

The network sees the ring through windows of the length it was trained on, and each frame is what
the windows around it make of it. The first frame of a window does not count: the network takes it
for the beginning of a clip, and a ring has none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def windows(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that cover a ring evenly.

    Args:
      count: frames of the ring.
      length: frames of a window; of one that is as long as the ring or longer, all frames count.

    Returns:
      Frames of each window int [W, L], and their weights float32 [W, L], which add up to one for
      every frame of the ring.
    """
    if count <= length:
        return np.arange(count)[None], np.ones((1, count), np.float32)
    number = -(-count // max(1, length // 2))
    starts = np.arange(number) * count // number
    frames = (starts[:, None] + np.arange(length)) % count
    position = np.arange(length)
    weights = np.broadcast_to(np.minimum(position, length - position), frames.shape)
    total = np.bincount(frames.ravel(), weights.ravel(), count)
    return frames, np.float32(weights / total[frames])


def over_windows(
    network: Callable[[jax.Array, jax.Array, Any], jax.Array], length: int, *, together: bool = True
) -> Callable[[jax.Array, jax.Array, Any], jax.Array]:
    """A network for rings of any length out of one for clips of `length` frames.

    Args:
      network: (x [B, T, h, w, C], t [B, T], text) -> an array like x, where `text` holds arrays
        [layers, B, ...].
      length: frames of a window.
      together: all windows as one batch, else one after the other.
    """

    def ring(x: jax.Array, t: jax.Array, text: Any) -> jax.Array:
        frames, weights = windows(x.shape[1], length)
        number, size = frames.shape

        if together:
            flat = (v[:, frames].reshape(-1, size, *v.shape[2:]) for v in (x, t))
            y = network(*flat, jax.tree.map(lambda v: jnp.repeat(v, number, axis=1), text))
        else:
            y = jax.lax.map(lambda at: network(x[:, at], t[:, at], text), jnp.asarray(frames))
            y = jnp.moveaxis(y, 0, 1)
        y = y.reshape(x.shape[0], number * size, *x.shape[2:])
        y = y * weights.reshape(1, -1, *[1] * (x.ndim - 2))
        return jnp.zeros_like(x).at[:, frames.ravel()].add(y)

    return ring
