"""Videos without an end: rolled along for as long as one likes, or closed to a ring."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.conditioning import staircase
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.diffusion.solvers import schedule
from sora_jax.pipeline import Model
from sora_jax.windows import RING, ROLLING, check_prompt, check_seconds, window_length

# Clean frames that a rolling window keeps behind it, of its T latent frames.
_KEPT = 1
# Latent frames of a ring that are decoded before those that count: the decoder's past.
_WARM = 8


def long_video(
    model: Model,
    prompt: str,
    seconds: float,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    **sampling: Any,
) -> Iterator[np.ndarray]:
    """A video of any duration, uint8 [f, H, W, 3] piece by piece, in constant memory.

    A window of the model's own length moves over the video. Its levels rise like stairs: the first
    frame after the clean ones is nearly done, the last is noise. When all have come down by one
    stair, one frame is done, and the window moves on by it (arXiv 2405.11473, 2402.09470).

    Args:
      prompt: what to show.
      seconds: duration.
      size: (width, height); None for the model's own.
      seed: of the noise.
      **sampling: steps (of each frame from noise to clean, to the nearest number that the stairs
        divide), guidance, solver, negative of `Model.sample`.

    Raises:
      ValueError: a value that the model cannot serve.
    """
    check_prompt(model, prompt)
    settings = model.settings.override(size=size, **sampling)
    count = round(check_seconds(seconds) * settings.fps)
    if count < 1:
        raise ValueError(f"{seconds} seconds hold no frame at {settings.fps:g} a second; give more")
    shape = model.latent_shape(settings.size, settings.frames)
    window_length(model, "roll along")
    text = model.read([prompt], settings.negative)
    start = model.noise((seed, ROLLING, 0), (1, *shape))
    latents = _roll(model, text, start, settings, seed)
    pieces = itertools.islice(latents, 1 + -(-(count - 1) // model.vae_config.temporal_stride))
    return _trim(model.decode_pieces(pieces), count)


def _roll(
    model: Model,
    text: jax.Array,
    start: jax.Array,
    settings: ModelSettings,
    seed: int,
) -> Iterator[jax.Array]:
    """Clean latents [1, 1, h, w, C], one after the other for ever, from a window of noise."""
    shape = start.shape[1:]
    frames, shift = shape[0], model.shift(shape)
    one = (1, 1, *shape[1:])
    noise = (model.noise((seed, ROLLING, i), one) for i in itertools.count(1))

    def stairs(count: int, first: float, last: float) -> jax.Array:
        offsets = jnp.linspace(first, last, count + 1)
        return jnp.stack([staircase(frames, _KEPT, offset, shift) for offset in offsets])

    x = model.advance(text, start, stairs(settings.steps, 1.0, 0.0), settings)
    for i in range(_KEPT):
        yield x[:, i : i + 1]
    height = 1.0 / (frames - _KEPT)
    down = stairs(max(1, round(settings.steps * height)), 0.0, -height)
    while True:
        x = model.advance(text, x, down, settings)
        yield x[:, _KEPT : _KEPT + 1]
        x = jnp.concatenate([x[:, 1:], next(noise)], axis=1)


def _trim(chunks: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The first `count` frames of a clip that comes in chunks [1, f, H, W, 3]."""
    for chunk in chunks:
        yield chunk[0, :count]
        count -= chunk.shape[1]
        if count <= 0:
            return


def endless_loop(
    model: Model,
    prompt: str,
    seconds: float,
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """A loop made from a prompt, without a seam: uint8 [F, H, W, 3].

    Time is a ring, which the model sees through windows of its own length, at other places in each
    step of the solver. The decoder goes round before the frames that count.

    Args:
      prompt: what to show.
      seconds: duration of a round, to the nearest latent frame.
      size: (width, height); None for the model's own.
      seed: of the noise.
      **sampling: steps, guidance, solver, negative of `Model.sample`.

    Raises:
      ValueError: less than two latent frames, or a value that the model cannot serve.
    """
    check_prompt(model, prompt)
    settings = model.settings.override(size=size, **sampling)
    stride = model.vae_config.temporal_stride
    count = round(check_seconds(seconds) * settings.fps / stride)
    if count < 2:
        raise ValueError(
            f"{seconds} seconds hold {count} latent frames of {stride / settings.fps:.3g} s; a "
            "loop takes at least two"
        )
    shape = model.latent_shape(settings.size, 1 + (count - 1) * stride)
    fits = count <= model.latent_frames
    window = count if fits else window_length(model, "see a longer loop through")
    shift = model.shift((window, *shape[1:]))
    levels = schedule(settings.steps, shift, grid=settings.level_grid)
    noise = model.noise((seed, RING), (1, *shape))
    text = model.read([prompt], settings.negative)
    latents = model.advance(text, noise, levels, settings, ring=window)
    rounds = 1 + -(-_WARM // count)
    frames = model.to_frames(jnp.tile(latents, (1, rounds, 1, 1, 1)))
    return frames[0, -count * stride :]
