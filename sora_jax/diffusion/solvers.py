"""From noise to clean latents: the loop over levels, Euler and Heun steps, guidance.

A solver sees the network as one function from (x, t [B, T]) to the clean latents, so it neither
knows text nor which quantity the network predicts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import add_noise, expand, shift_levels, velocity_from_clean

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def schedule(steps: int, shift: float, start: float = 1.0) -> jax.Array:
    """Levels down to 0, float32 [steps + 1], shifted towards noise.

    Args:
      steps: of the solver.
      shift: see `flow.shift_levels`.
      start: where on the path to begin, 1 at pure noise: the strength of an edit.
    """
    return shift_levels(jnp.linspace(start, 0.0, steps + 1), shift)


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
    ceilings: jax.Array | None = None,
) -> jax.Array:
    """Clean latents from noise.

    Args:
      denoise: (x, t [B, T]) -> clean latents.
      noise: standard normal [B, T, h, w, C].
      levels: the schedule, falling: [steps + 1], or [steps + 1, T] with a level for each frame.
      step: one step of the solver.
      known: clean latents of the frames that are given, shaped like noise.
      ceilings: [B, T], the highest level of each frame, see `diffusion.conditioning`; None for 1.

    Returns:
      float32 [B, T, h, w, C]; frames whose ceiling is 0 equal `known` exactly.
    """
    if ceilings is None:
        ceilings, known = jnp.ones(noise.shape[:2]), jnp.zeros_like(noise)
    held = expand(ceilings <= 0, noise)
    levels = levels.reshape(levels.shape[0], 1, -1)

    def body(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        t, s = (jnp.minimum(level, ceilings) for level in pair)
        return jnp.where(held, known, step(denoise, x, t, s)), None

    x = add_noise(known, noise, jnp.minimum(levels[0], ceilings))
    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)
    x, _ = jax.lax.scan(body, x, pairs)
    return x
