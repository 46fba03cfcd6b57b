"""The straight path between clean latents and noise, and what follows from it.

x_t = (1 - t) x_0 + t eps, with velocity v = dx_t/dt = eps - x_0 (rectified flow, arXiv 2209.03003,
2210.02747). Levels t broadcast from [B, T] over the latents [B, T, h, w, C].
"""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp

# Shares of the training levels that are drawn begin and end here: beyond, levels are almost 0 or 1.
_FIRST, _LAST = 1e-4, 1 - 1e-4


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
    """Levels [B, T] with trailing ones, to multiply x [B, T, ...]."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def add_noise(clean: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t of clean latents and standard normal noise at levels t [B, T]."""
    t = expand(t, clean)
    return (1 - t) * clean + t * noise


def velocity_from_clean(
    x: jax.Array, clean: jax.Array, t: jax.Array, floor: float = 1e-4
) -> jax.Array:
    """v = (x_t - x_0) / t, with t floored (arXiv 2511.13720)."""
    return (x - clean) / jnp.maximum(expand(t, x), floor)


def clean_from_velocity(x: jax.Array, velocity: jax.Array, t: jax.Array) -> jax.Array:
    """x_0 = x_t - t v."""
    return x - expand(t, x) * velocity


def shift_levels(t: jax.Array, shift: float | jax.Array) -> jax.Array:
    """t' = s t / (1 + (s - 1) t): more of the path at high noise for s > 1 (arXiv 2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def token_shift(tokens: int, *, base: float, base_tokens: int | None) -> float:
    """The shift for a clip of `tokens`: `base` at `base_tokens`, growing with the square root.

    Without `base_tokens` it is `base` for all.

    More tokens average the noise away more, so the same destruction needs a higher level
    (arXiv 2403.03206, equation 23).
    """
    return base if base_tokens is None else base * (tokens / base_tokens) ** 0.5


def told_levels(t: jax.Array, grid: int | None) -> jax.Array:
    """Levels as a model of `grid` discrete levels is told them, rounded down; None for all."""
    return t if grid is None else jnp.floor(t * grid) / grid


def draw_levels(
    key: jax.Array,
    batch: int,
    *,
    mean: float,
    std: float,
    shares: tuple[float, float] = (0.0, 1.0),
) -> jax.Array:
    """Training levels [B]: logit-normal, stratified over the batch so that each step sees all.

    Args:
      key: random key.
      batch: B.
      mean, std: of the logit of the level.
      shares: of all levels in their order, those between which levels are drawn, see `level_share`.
    """
    first, second = jax.random.split(key)
    offsets = jax.random.uniform(first, (batch,))
    quantiles = (jax.random.permutation(second, batch) + offsets) / batch
    low, high = shares
    quantiles = jnp.clip(low + (high - low) * quantiles, _FIRST, _LAST)
    return jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(quantiles))


def level_share(level: float, *, mean: float, std: float, shift: float) -> float:
    """The share of the levels of `draw_levels`, shifted, that are below one."""
    t = level / (shift - (shift - 1) * level)  # before the shift
    if not 0 < t < 1:
        return float(t >= 1)
    return NormalDist(mean, std).cdf(math.log(t / (1 - t)))
