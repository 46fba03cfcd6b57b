"""Rotary positions in three dimensions: time, height and width share the channels of a head."""

import jax
import jax.numpy as jnp


def split_channels(head_width: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width (44, 42, 42 of 128)."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def rope_angles(
    positions: tuple[jax.Array, jax.Array, jax.Array], head_width: int, theta: float = 10_000.0
) -> jax.Array:
    """Angles of a grid of tokens, float32 [T, H, W, head_width / 2], of positions [T], [H], [W].

    Channel pair i of an axis with c channels turns by position * theta^(-2i / c) (arXiv
    2104.09864). Positions may be fractional or repeat, so that grids can be stretched or closed.
    """
    grid = tuple(p.shape[0] for p in positions)
    parts = []
    for axis, (position, channels) in enumerate(zip(positions, split_channels(head_width))):
        exponents = jnp.arange(0, channels, 2, dtype=jnp.float32) / channels
        angles = jnp.outer(position.astype(jnp.float32), theta**-exponents)
        shape = [1, 1, 1, channels // 2]
        shape[axis] = grid[axis]
        parts.append(jnp.broadcast_to(angles.reshape(shape), (*grid, channels // 2)))
    return jnp.concatenate(parts, axis=-1)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the channel pairs of x [B, ..., K, d] by angles [..., d / 2], in float32.

    The pair i is (x[i], x[i + d / 2]). Models that pair neighbouring channels hold the same
    function with the channels of queries and keys in another order: attention only sees dot
    products within a head. Halves keep vector lanes whole, where neighbours would interleave them.
    """
    half = x.shape[-1] // 2
    cos = jnp.cos(angles)[None, ..., None, :]
    sin = jnp.sin(angles)[None, ..., None, :]
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.astype(x.dtype)
