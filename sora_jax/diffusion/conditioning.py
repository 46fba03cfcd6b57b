"""Which latent frames are given, and how noisy each one is: the whole repertoire of prompting.

Every latent frame has a level of its own, 0 clean and 1 pure noise, and a ceiling that its level
never exceeds. Ceiling 1 is a frame made from noise; ceiling 0 a frame that is given and stays; a
ceiling between them a frame that is given roughly: sampling starts from it with that much noise.
Text to video has ceilings of 1 throughout, an animated image 0 at the first frame, an edited video
the same ceiling everywhere. Training draws the same patterns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import shift_levels

# The highest strength of a rough hint in training: above it, little of a frame is left.
_SOFT = 0.5


class Given(NamedTuple):
    """A piece of a clip that is given: latents [t, h, w, C] at latent frame `start`.

    `strength` is how much is made anew, 0 nothing and 1 all, as a share of the sampling path: one
    number, or one for each of the t frames. The ceiling follows by the schedule's shift.
    """

    latents: jax.Array
    start: int
    strength: float | Sequence[float] = 0.0


def lay(shape: tuple[int, int, int, int], given: Sequence[Given]) -> tuple[jax.Array, np.ndarray]:
    """Lays what is given onto the grid of a clip.

    Args:
      shape: [T, h, w, C] of the clip's latents.
      given: the pieces, none of which overlap.

    Returns:
      Known latents float32 [T, h, w, C], zero where nothing is given, and strengths float32 [T].

    Raises:
      ValueError: a piece of another size, outside the clip, on top of another, or a strength
        outside [0, 1].
    """
    known = jnp.zeros(shape, jnp.float32)
    strengths = np.ones(shape[0], np.float32)
    taken = np.zeros(shape[0], bool)
    for piece in given:
        count = piece.latents.shape[0]
        if piece.latents.shape[1:] != shape[1:]:
            raise ValueError(
                f"latents {tuple(piece.latents.shape)} do not fit a clip of {shape}: encode them "
                "at the clip's own size"
            )
        if piece.start < 0 or piece.start + count > shape[0]:
            raise ValueError(
                f"{count} latent frames from {piece.start} on do not lie within the clip's "
                f"{shape[0]}: make the clip longer or give less"
            )
        at = slice(piece.start, piece.start + count)
        if taken[at].any():
            raise ValueError(
                f"latent frame {piece.start + int(taken[at].argmax())} is given twice: move one "
                "of the two, or make the clip longer"
            )
        strength = np.asarray(piece.strength, np.float32)
        if strength.shape not in ((), (count,)):
            raise ValueError(
                f"{strength.size} strengths do not fit {count} latent frames: give one, or one for "
                "each of them"
            )
        if not ((strength >= 0) & (strength <= 1)).all():
            raise ValueError(f"strength {piece.strength} must lie in 0 (kept) to 1 (made anew)")
        known = known.at[at].set(piece.latents)
        strengths[at] = strength
        taken[at] = True
    return known, strengths


def _none(key: jax.Array, frames: int) -> jax.Array:
    return jnp.ones(frames)


def _first_frame(key: jax.Array, frames: int) -> jax.Array:
    return jnp.where(jnp.arange(frames) == 0, 0.0, 1.0)


def _prefix(key: jax.Array, frames: int) -> jax.Array:
    count = jax.random.randint(key, (), 1, frames)
    return jnp.where(jnp.arange(frames) < count, 0.0, 1.0)


def _suffix(key: jax.Array, frames: int) -> jax.Array:
    return _prefix(key, frames)[::-1]


def _both_ends(key: jax.Array, frames: int) -> jax.Array:
    """At least one frame is free; of two frames only the first is given."""
    first, second = jax.random.split(key)
    head = jax.random.randint(first, (), 1, max(2, frames - 1))
    tail = 1 + jnp.floor(jax.random.uniform(second) * (frames - 1 - head)).astype(jnp.int32)
    tail = jnp.minimum(tail, frames - 1 - head)
    index = jnp.arange(frames)
    return jnp.where((index < head) | (index >= frames - tail), 0.0, 1.0)


def _keyframes(key: jax.Array, frames: int) -> jax.Array:
    """A random set of frames, neither none nor all of them."""
    share, which, order = jax.random.split(key, 3)
    given = jax.random.uniform(which, (frames,)) < jax.random.uniform(share, maxval=0.6)
    free, kept = jax.random.permutation(order, frames)[:2]
    return jnp.where(given, 0.0, 1.0).at[free].set(1.0).at[kept].set(0.0)


def _some(key: jax.Array, frames: int) -> jax.Array:
    """A beginning, an end or keyframes."""
    choice, which = jax.random.split(key)
    patterns = (_prefix, _suffix, _keyframes)
    every = jnp.stack([pattern(which, frames) for pattern in patterns])
    return every[jax.random.randint(choice, (), 0, len(patterns))]


def _soft_hint(key: jax.Array, frames: int) -> jax.Array:
    """A beginning, an end or keyframes, given roughly."""
    which, level = jax.random.split(key)
    return jnp.maximum(_some(which, frames), jax.random.uniform(level, maxval=_SOFT))


# Strengths of the frames of one clip, float32 [T], of at least two: see `Given`.
STRENGTHS: dict[str, Callable[[jax.Array, int], jax.Array]] = {
    "none": _none,
    "first_frame": _first_frame,
    "prefix": _prefix,
    "suffix": _suffix,
    "both_ends": _both_ends,
    "keyframes": _keyframes,
    "soft_hint": _soft_hint,
}
PATTERNS = (*STRENGTHS, "hidden", "staircase")


def staircase(frames: int, kept: int | jax.Array, offset: jax.Array, shift: float) -> jax.Array:
    """Levels of a window that is rolled along a long video, float32 [T], rising with time.

    Args:
      frames: T of the window.
      kept: clean frames at its beginning, fewer than T; the stairs are the other n.
      offset: positions by which the stairs are lifted, 1 being the whole schedule. From 0 to -1/n
        every frame goes down one stair: one is done, and the window may move on by it. From 1 down
        to 0 a window of noise becomes stairs, with the first `kept` frames clean at the end; from 0
        down to -1 stairs become clean frames.
      shift: of the schedule, see `flow.shift_levels`.
    """
    position = (jnp.arange(frames) - kept + 1.0) / (frames - kept) + offset
    return shift_levels(jnp.clip(position, 0.0, 1.0), shift)


def _draw_staircase(key: jax.Array, frames: int, shift: float) -> jax.Array:
    """Rolling along half of the time, setting off and arriving in the other half."""
    choice, where, how_many = jax.random.split(key, 3)
    kept = jax.random.randint(how_many, (), 0, max(1, frames - 1))
    height = 1.0 / (frames - kept)
    rolling = jax.random.uniform(where, minval=-height, maxval=0.0)
    ends = jax.random.uniform(where, minval=-1.0 + 0.5 * height, maxval=1.0)
    offset = jnp.where(jax.random.bernoulli(choice), rolling, ends)
    return staircase(frames, kept, offset, shift)


def _draw_hidden(key: jax.Array, t: jax.Array, frames: int) -> jax.Array:
    """Some frames are pure noise, whatever the level of the others.

    What the model makes of the others then owes nothing to those frames, which is what guidance by
    given frames compares with (arXiv 2502.06764).
    """
    return jnp.where(_some(key, frames) == 0, 1.0, t)


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ValueError for an unknown pattern, or weights that are no frequencies."""
    unknown = sorted(set(weights) - set(PATTERNS))
    if unknown:
        raise ValueError(f"conditioning pattern {unknown[0]!r} is unknown; known are {PATTERNS}")
    if not (all(0 <= w < float("inf") for w in weights.values()) and sum(weights.values()) > 0):
        raise ValueError(
            f"conditioning weights {dict(weights)} must not be negative, and have a positive sum"
        )


def draw_frame_levels(
    key: jax.Array, t: jax.Array, frames: int, weights: Mapping[str, float], shift: float
) -> jax.Array:
    """Levels [B, T] at which training sees each frame; frames at exactly 0 are given.

    Args:
      key: random key.
      t: the clips' levels [B], which frames exceed only if hidden or in a staircase.
      frames: T. In images (T = 1) nothing is given: there would be nothing left to learn.
      weights: relative frequency of the patterns in PATTERNS.
      shift: of the schedule.

    Raises:
      ValueError: an unknown pattern or no positive weight.
    """
    check_weights(weights)
    if frames == 1:
        return t[:, None]
    total = sum(weights.values())
    names = [name for name, weight in weights.items() if weight > 0]
    shares = jnp.array([weights[name] / total for name in names])

    def levels(name: str, key: jax.Array, t: jax.Array) -> jax.Array:
        if name == "staircase":
            return _draw_staircase(key, frames, shift)
        if name == "hidden":
            return _draw_hidden(key, t, frames)
        return jnp.minimum(t, shift_levels(STRENGTHS[name](key, frames), shift))

    def one(key: jax.Array, t: jax.Array) -> jax.Array:
        choice, inside = jax.random.split(key)
        every = [levels(name, inside, t) for name in names]
        return jnp.stack(every)[jax.random.choice(choice, len(names), p=shares)]

    return jax.vmap(one)(jax.random.split(key, t.shape[0]), t)
