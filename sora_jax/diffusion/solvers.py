"""From noise to clean latents: the loop over levels, Euler and Heun steps, guidance.

A solver sees the network as one function from (x, t [B, T]) to the clean latents, so it neither
knows text nor which quantity the network predicts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import expand, shift_levels, velocity_from_clean

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def schedule(steps: int, shift: float) -> jax.Array:
    """Levels from 1 down to 0, float32 [steps + 1], shifted towards noise."""
    return shift_levels(jnp.linspace(1.0, 0.0, steps + 1), shift)


def guide(conditional: jax.Array, unconditional: jax.Array, guidance: jax.Array) -> jax.Array:
    """Classifier-free guidance of clean predictions (arXiv 2207.12598); 1 is no guidance."""
    return unconditional + guidance * (conditional - unconditional)


def limit_range(x: jax.Array, limit: float) -> jax.Array:
    """Keeps a clean prediction within +- limit standard deviations of normalised latents.

    Strong guidance leaves the range that clean latents have; past it errors feed themselves.
    """
    return jnp.clip(x, -limit, limit)


def euler_step(denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """From levels t [B, T] to s < t along the velocity at t."""
    velocity = velocity_from_clean(x, denoise(x, t), t)
    return x + expand(s - t, x) * velocity


def heun_step(denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """From t to s along the mean of the velocities at both ends (arXiv 2206.00364).

    The last step, to level 0, is Euler's: there the velocity of a clean prediction is undefined.
    """
    first = velocity_from_clean(x, denoise(x, t), t)
    y = x + expand(s - t, x) * first
    second = velocity_from_clean(y, denoise(y, s), s)
    mean = jnp.where(expand(s, x) > 0, 0.5 * (first + second), first)
    return x + expand(s - t, x) * mean


Step = Callable[[Denoise, jax.Array, jax.Array, jax.Array], jax.Array]
SOLVERS: dict[str, Step] = {"euler": euler_step, "heun": heun_step}


def solve(
    denoise: Denoise,
    noise: jax.Array,
    levels: jax.Array,
    *,
    step: Step = euler_step,
    known: jax.Array | None = None,
    held: jax.Array | None = None,
) -> jax.Array:
    """Clean latents from noise.

    Args:
      denoise: (x, t [B, T]) -> clean latents.
      noise: standard normal [B, T, h, w, C].
      levels: the schedule, [steps + 1], from 1 to 0.
      step: one step of the solver.
      known: clean latents of the held frames, shaped like noise (anything elsewhere).
      held: bool [B, T], the frames that are given and stay as they are.

    Returns:
      float32 [B, T, h, w, C]; held frames equal `known` exactly.
    """
    if held is None:
        held = jnp.zeros(noise.shape[:2], bool)
        known = jnp.zeros_like(noise)

    def lay(x: jax.Array) -> jax.Array:
        return jnp.where(expand(held, x), known, x)

    def body(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        t, s = (jnp.where(held, 0.0, level) for level in pair)
        return lay(step(denoise, x, t, s)), None

    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)
    x, _ = jax.lax.scan(body, lay(noise), pairs)
    return x
