"""From noise to clean latents: the loop over levels, steps of several orders.

A solver sees the network as one function from (x, t [B, T]) to the clean latents, so it neither
knows text nor which quantity the network predicts.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import add_noise, expand, shift_levels, velocity_from_clean

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def schedule(steps: int, shift: float, start: float = 1.0) -> np.ndarray:
    """Levels down to 0, float32 [steps + 1], shifted towards noise.

    Args:
      steps: of the solver.
      shift: see `flow.shift_levels`.
      start: where on the path to begin, 1 at pure noise: the strength of an edit.
    """
    return np.float32(shift_levels(np.linspace(start, 0.0, steps + 1), shift))


def limit_range(x: jax.Array, limit: float) -> jax.Array:
    """Keeps a clean prediction within +- limit standard deviations of normalised latents.

    Strong guidance leaves the range that clean latents have; past it errors feed themselves.
    """
    return jnp.clip(x, -limit, limit)


class Last(NamedTuple):
    """What a multistep solver remembers: the clean prediction of the step before and its level."""

    clean: jax.Array
    level: jax.Array


def euler_step(
    denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array, last: Last
) -> tuple[jax.Array, Last]:
    """From levels t [B, T] to s < t along the velocity at t."""
    clean = denoise(x, t)
    return _move(x, clean, t, s), Last(clean, t)


def heun_step(
    denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array, last: Last
) -> tuple[jax.Array, Last]:
    """From t to s along the mean of the velocities at both ends (arXiv 2206.00364).

    The last step, to level 0, is Euler's: there the velocity of a clean prediction is undefined.
    """
    clean = denoise(x, t)
    first = velocity_from_clean(x, clean, t)
    y = x + expand(s - t, x) * first
    second = velocity_from_clean(y, denoise(y, s), s)
    mean = jnp.where(expand(s, x) > 0, 0.5 * (first + second), first)
    return x + expand(s - t, x) * mean, Last(clean, t)


def deis_step(
    denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array, last: Last
) -> tuple[jax.Array, Last]:
    """The second-order multistep solver of DEIS (arXiv 2204.13902): one call of the network.

    x_s / s = x_t / t + int_s^t clean(u) / u^2 du holds exactly; the clean prediction is taken as
    linear in u through this step's and the last step's. A frame's first step is Euler's.
    """
    clean = denoise(x, t)
    moves = (last.level > t) & (t > s)
    slope = expand(jnp.where(moves, 1.0 / jnp.where(moves, t - last.level, 1.0), 0.0), x)
    # The integral's weight of a slope, over that of a constant: where on the line to aim.
    share = jnp.where(moves, s / jnp.where(moves, t, 1.0), 0.5)
    aim = t * (-share * jnp.log(jnp.maximum(share, 1e-12)) - 1.0 + share) / (1.0 - share)
    target = clean + expand(aim, x) * slope * (clean - last.clean)
    return _move(x, target, t, s), Last(clean, t)


def _move(x: jax.Array, clean: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    return x + expand(s - t, x) * velocity_from_clean(x, clean, t)


Step = Callable[[Denoise, jax.Array, jax.Array, jax.Array, Last], tuple[jax.Array, Last]]
SOLVERS: dict[str, Step] = {
    "euler": euler_step,
    "heun": heun_step,
    "deis": deis_step,
}


def solve(
    denoise: Denoise,
    x: jax.Array,
    levels: jax.Array,
    *,
    step: Step = euler_step,
    known: jax.Array | None = None,
    ceilings: jax.Array | None = None,
    circular: bool = False,
) -> jax.Array:
    """Takes latents from the first of the levels to the last.

    Args:
      denoise: (x, t [B, T]) -> clean latents.
      x: noisy latents [B, T, h, w, C] at the first levels, see `set_off`.
      levels: the schedule, falling: [steps + 1], or [steps + 1, T] with a level for each frame.
      step: one step of the solver.
      known: clean latents of the frames that are given, shaped like x.
      ceilings: [B, T], the highest level of each frame, see `diffusion.conditioning`; None for 1.
      circular: whether the last frame is followed by the first, with nothing given: each step sees
        the ring cut open at another place, so that it has no seam.

    Returns:
      float32 [B, T, h, w, C]; frames whose ceiling is 0 equal `known` exactly.
    """
    if ceilings is None:
        ceilings, known = jnp.ones(x.shape[:2]), jnp.zeros_like(x)
    held = expand(ceilings <= 0, x)
    levels = levels.reshape(levels.shape[0], 1, -1)

    def body(carry: tuple[jax.Array, Last], scanned: tuple) -> tuple[tuple, None]:
        pair, cut = scanned
        t, s = (jnp.minimum(level, ceilings) for level in pair)
        if circular:
            carry = jax.tree.map(lambda v: jnp.roll(v, -cut, axis=1), carry)
        x, last = step(denoise, carry[0], t, s, carry[1])
        if circular:
            x, last = jax.tree.map(lambda v: jnp.roll(v, cut, axis=1), (x, last))
        return (jnp.where(held, known, x), last), None

    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)
    # Steps of the golden ratio: cuts lie far apart from one step to the next, and everywhere.
    cuts = jnp.floor(jnp.arange(len(pairs)) * 0.618034 % 1.0 * x.shape[1]).astype(jnp.int32)
    last = Last(jnp.zeros_like(x), jnp.minimum(levels[0], ceilings))
    (x, _), _ = jax.lax.scan(body, (x, last), (pairs, cuts))
    return x


@jax.jit
def set_off(
    noise: jax.Array, levels: jax.Array, known: jax.Array, ceilings: jax.Array
) -> jax.Array:
    """Where `solve` begins: the known latents with the noise of the first levels."""
    return add_noise(known, noise, jnp.minimum(levels[0].reshape(1, -1), ceilings))
