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

# How far below pure noise a level must lie for its log signal-to-noise ratio to be finite.
_BELOW_NOISE = 1e-6


def schedule(
    steps: int, shift: float, start: float = 1.0, *, grid: int | None = None
) -> np.ndarray:
    """Levels down to 0, float32 [steps + 1], shifted towards noise.

    Args:
      steps: of the solver.
      shift: see `flow.shift_levels`.
      start: where on the path to begin, 1 at pure noise: the strength of an edit.
      grid: for a model of `grid` discrete levels, 1000 for Wan: the even steps lead to the lowest
        of them, of which the last goes to 0 instead, and begin just below pure noise. These are
        the levels of the official sampler and of diffusers' (UniPC, `use_flow_sigmas`).
    """
    if grid is None:
        return np.float32(shift_levels(np.linspace(start, 0.0, steps + 1), shift))
    path = np.linspace(start, min(start, 1.0 / grid), steps + 1)
    levels = np.minimum(shift_levels(path, shift), 1.0 - _BELOW_NOISE)
    return np.float32([*levels[:-1], 0.0])


def limit_range(x: jax.Array, limit: float | None) -> jax.Array:
    """Keeps a clean prediction within +- limit standard deviations of normalised latents, if any.

    Strong guidance leaves the range that clean latents have; past it errors feed themselves.
    """
    return x if limit is None else jnp.clip(x, -limit, limit)


class Last(NamedTuple):
    """What multistep solvers remember of the steps before.

    Attributes:
      clean, level: the clean prediction of the last step, and the level it was made at.
      corrected: what `unipc_step` set off from in the last step; the others leave it alone.
      earlier_clean, earlier_level: of the step before the last, for `unipc_step` too.
    """

    clean: jax.Array
    level: jax.Array
    corrected: jax.Array | None = None
    earlier_clean: jax.Array | None = None
    earlier_level: jax.Array | None = None


def euler_step(
    denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array, last: Last
) -> tuple[jax.Array, Last]:
    """From levels t [B, T] to s < t along the velocity at t."""
    clean = denoise(x, t)
    return _move(x, clean, t, s), last._replace(clean=clean, level=t)


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
    return x + expand(s - t, x) * mean, last._replace(clean=clean, level=t)


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
    return _move(x, target, t, s), last._replace(clean=clean, level=t)


def unipc_step(
    denoise: Denoise, x: jax.Array, t: jax.Array, s: jax.Array, last: Last
) -> tuple[jax.Array, Last]:
    """UniPC of order 2 with B_2 (arXiv 2302.04867), on clean predictions: one call of the network.

    The step before is taken once more with what the network says at its end (the corrector), and
    the next one sets off from there (the predictor). A frame's first step is of order 1, and so is
    the last, to level 0. Levels at pure noise count as just below it.
    """
    clean = denoise(x, t)
    came = last.level > t
    early = came & (last.earlier_level > last.level)  # whether the step before was of order 2
    # The corrector: from the last level to t, through three predictions or two.
    base, ratio, h = _exponential(last.corrected, last.clean, last.level, t, came)
    slope, place = _slope(last.earlier_clean, last.clean, last.earlier_level, last.level, h, early)
    # Two moments of the integral, over B_2(h).
    growth = jnp.where(came, jnp.expm1(-h), -0.5)
    width = jnp.where(came, h, 1.0)
    first = jnp.where(came, -1.0 / width - 1.0 / growth, 0.5)
    second = jnp.where(came, 2.0 * (-first / width - 0.5 / growth), 0.5)
    bent = jnp.where(early, (first - second) / (1.0 - place), 0.0)
    straight = jnp.where(early, first - bent, 0.5)
    change = expand(bent, x) * slope + expand(straight, x) * (clean - last.clean)
    x = jnp.where(expand(came, x), base - expand((1 - t) * (ratio - 1), x) * change, x)
    # The predictor: from t to s, through two predictions or one.
    moves = t > s
    base, ratio, h = _exponential(x, clean, t, s, moves)
    curved = moves & came & (s > 0)
    slope, _ = _slope(last.clean, clean, last.level, t, h, curved)
    y = base - expand((1 - s) * (ratio - 1), x) * 0.5 * slope
    return jnp.where(expand(moves, x), y, x), Last(clean, t, x, last.clean, last.level)


def _noise_ratio(t: jax.Array) -> jax.Array:
    """Noise over signal at levels [B, T], finite."""
    t = jnp.minimum(t, 1.0 - _BELOW_NOISE)
    return t / (1.0 - t)


def _exponential(
    x: jax.Array, clean: jax.Array, t: jax.Array, s: jax.Array, moves: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The exact step from t to s for a clean prediction that stays as it is.

    Returns:
      x at s; the ratio [B, T] of noise over signal at s and at t, exp(-h); and h, the growth of
      half the log signal-to-noise ratio. Where nothing moves ratio and h are one, to be unused.
    """
    t = jnp.minimum(t, 1.0 - _BELOW_NOISE)
    ratio = jnp.where(moves, _noise_ratio(s) / jnp.where(moves, _noise_ratio(t), 1.0), 1.0)
    h = jnp.where(moves & (s > 0), -jnp.log(jnp.where(moves & (s > 0), ratio, 0.5)), 1.0)
    share = expand(jnp.where(moves, s / jnp.where(moves, t, 1.0), 1.0), x)
    return share * x - expand((1 - s) * (ratio - 1), x) * clean, ratio, h


def _slope(
    earlier: jax.Array,
    clean: jax.Array,
    before: jax.Array,
    t: jax.Array,
    h: jax.Array,
    known: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """How the clean prediction changed from level `before` to t, for a step of width h from t.

    Returns:
      The change over one width of the step, zero where it is not known, and where on the scale of
      that width the earlier prediction lies [B, T], which is below zero.
    """
    ratio = jnp.where(known, _noise_ratio(t) / jnp.where(known, _noise_ratio(before), 1.0), 0.5)
    place = jnp.where(known, jnp.log(ratio) / h, -1.0)
    return expand(jnp.where(known, 1.0 / place, 0.0), clean) * (earlier - clean), place


def _move(x: jax.Array, clean: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    return x + expand(s - t, x) * velocity_from_clean(x, clean, t)


def nothing_yet(x: jax.Array, levels: jax.Array, ceilings: jax.Array | None) -> Last:
    """What a solver remembers before its first step, which begins at levels [T], or at a scalar."""
    none, start = jnp.zeros_like(x), _below(levels, x, ceilings)
    return Last(none, start, none, none, start)


def _below(levels: jax.Array, x: jax.Array, ceilings: jax.Array | None) -> jax.Array:
    """Levels [B, T] of the frames of x, of levels [T] or of a scalar, none above its ceiling."""
    levels = jnp.broadcast_to(levels.reshape(1, -1), x.shape[:2])
    return levels if ceilings is None else jnp.minimum(levels, ceilings)


Step = Callable[[Denoise, jax.Array, jax.Array, jax.Array, Last], tuple[jax.Array, Last]]
SOLVERS: dict[str, Step] = {
    "euler": euler_step,
    "heun": heun_step,
    "deis": deis_step,
    "unipc": unipc_step,
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
    last: Last | None = None,
    done: jax.Array | int = 0,
) -> tuple[jax.Array, Last]:
    """Takes latents from the first of the levels to the last.

    Args:
      denoise: (x, t [B, T]) -> clean latents.
      x: noisy latents [B, T, h, w, C] at the first levels, see `set_off`.
      levels: the schedule, falling: [steps + 1], or [steps + 1, T] with a level for each frame.
      step: one step of the solver.
      known: clean latents of the frames that are given, shaped like x; None without ceilings.
      ceilings: [B, T], the highest level of each frame, see `diffusion.conditioning`; None for 1.
      circular: whether the last frame is followed by the first, with nothing given: each step sees
        the ring cut open at another place, so that it has no seam.
      last: what came back with x where it is taken on from there; None at the beginning.
      done: how many steps were taken before.

    Returns:
      float32 [B, T, h, w, C], of which frames whose ceiling is 0 equal `known` exactly; and what
      the next steps need to know of these.
    """
    held = None if ceilings is None else expand(ceilings <= 0, x)

    def body(carry: tuple[jax.Array, Last], scanned: tuple) -> tuple[tuple, None]:
        pair, cut = scanned
        t, s = (_below(level, x, ceilings) for level in pair)
        if circular:
            carry = jax.tree.map(lambda v: jnp.roll(v, -cut, axis=1), carry)
        y, last = step(denoise, carry[0], t, s, carry[1])
        if circular:
            y, last = jax.tree.map(lambda v: jnp.roll(v, cut, axis=1), (y, last))
        return (y if held is None else jnp.where(held, known, y), last), None

    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)
    # Steps of the golden ratio: cuts lie far apart from one step to the next, and everywhere.
    numbers = done + jnp.arange(len(pairs))
    cuts = jnp.floor(numbers * 0.618034 % 1.0 * x.shape[1]).astype(jnp.int32)
    if last is None:
        last = nothing_yet(x, levels[0], ceilings)
    return jax.lax.scan(body, (x, last), (pairs, cuts))[0]


@jax.jit
def set_off(
    noise: jax.Array, levels: jax.Array, known: jax.Array, ceilings: jax.Array
) -> jax.Array:
    """Where `solve` begins: the known latents with the noise of the first levels."""
    return add_noise(known, noise, _below(levels[0], known, ceilings))
