"""Which latent frames are known, and at which noise level: the whole repertoire of prompting.

A level per latent frame, 0 clean and 1 pure noise. Text to video starts with every level at 1;
animating an image holds frame 0 at level 0. Training draws the same patterns.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

# How often training holds which frames; the rest is generated from noise alone.
PATTERNS = ("none", "first_frame")


def draw_held(key: jax.Array, batch: int, frames: int, weights: Mapping[str, float]) -> jax.Array:
    """Which latent frames training holds clean: bool [B, T].

    Args:
      key: random key.
      batch, frames: B and T.
      weights: relative frequency of the patterns in PATTERNS. Images (T = 1) are never held: there
        would be nothing left to learn.

    Raises:
      ValueError: an unknown pattern or no positive weight.
    """
    unknown = sorted(set(weights) - set(PATTERNS))
    if unknown:
        raise ValueError(f"conditioning pattern {unknown[0]!r} is unknown; known are {PATTERNS}")
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(f"conditioning weights {dict(weights)} must have a positive sum")
    if frames == 1:
        return jnp.zeros((batch, 1), bool)
    first = jax.random.uniform(key, (batch,)) < weights.get("first_frame", 0.0) / total
    return first[:, None] & (jnp.arange(frames) == 0)[None]


def levels_of(t: jax.Array, held: jax.Array) -> jax.Array:
    """Levels [B, T]: the clip's t [B], and 0 where a frame is held."""
    return jnp.where(held, 0.0, t[:, None])
