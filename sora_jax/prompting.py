"""Prompting with images and videos: animate, extend, connect, loop, edit, keyframes.

Each is a choice of latents that are given, and where; one model and one sampler serve all of it.

How frames and latent frames meet. The VAE is causal: latent frame 0 is frame 0 alone, and latent
frame j holds frames 4j - 3 to 4j and knows what came before. A clip that is given at the beginning
is encoded as it is. One that is given later (a suffix, a keyframe) has no past that could be known
before sampling, so it is encoded after its own first frame standing still for a while, and begins a
latent frame of its own: no latent frame mixes frames that are given with frames that are
made. The frames of a given video are returned as they came, never as the VAE would show them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.conditioning import Given
from sora_jax.pipeline import Model

# Latent frames of stillness, after the single first one, before a clip that is given later. With
# two, its first latent frame is 0.13 standard deviations from what its true past would have made
# of it (shipped VAE), with one 0.18, with none 0.32.
_STILL = 2
_DAY = 24 * 3600
# Numbers of the tasks that draw noise by windows, so that none has another's or that of a clip
# with the same seed.
_FORWARDS, _BACKWARDS, _BETWEEN = 1, 2, 3


def animate(
    model: Model, image: np.ndarray, prompt: str | list[str], **sampling: Any
) -> np.ndarray:
    """A video that begins with an image: uint8 [F, H, W, 3], or [B, F, H, W, 3] for a list.

    Args:
      image: uint8 [H, W, 3]; the video has its size.
      prompt: what happens.
      **sampling: frames, seed, steps, guidance, solver of `Model.sample`.
    """
    _check_frames(model, image[None], "the image")
    if sampling.get("frames") == 1:
        raise ValueError("a video of one frame is the image itself; ask for more frames")
    first = Given(model.encode(image[None, None])[0], 0)
    clip = model.sample(prompt, size=_size(image), given=[first], **sampling)
    clip[..., 0, :, :, :] = image
    return clip


def extend(
    model: Model,
    video: np.ndarray,
    prompt: str,
    seconds: float,
    *,
    seed: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """A video and what comes after it, or before it if `seconds` is negative.

    Longer stretches are made in windows of the model's own length, each given the end of the one
    before in latents, which are decoded only once all are made.

    Args:
      video: uint8 [F, H, W, 3] at the model's frame rate.
      prompt: what happens.
      seconds: how much to add.
      seed: of the noise; each window has its own.
      **sampling: steps, guidance, solver of `Model.sample`.

    Returns:
      uint8 frames; those of `video` are among them unchanged.

    Raises:
      ValueError: nothing to add, or a video that is too short to go on from.
    """
    _check_frames(model, video, "the video")
    count = round(abs(check_seconds(seconds)) * model.fps)
    if count < 1:
        raise ValueError(
            f"{seconds} seconds are less than a frame of {1 / model.fps:.3g} seconds; give more"
        )
    _, context = _window(model)
    if seconds > 0:
        kept = _tail(model, video, context, "the video")
        latents = _forwards(model, kept, prompt, count, _size(video), seed, sampling)
        made = _decode(model, latents, skip=_frames(model, len(kept)))[:count]
        return np.concatenate([video, made])
    kept = _head(model, video, context, "the video")
    latents = _backwards(model, kept, prompt, count, _size(video), seed, sampling)
    made = _decode(model, latents, skip=0)[-count:]
    return np.concatenate([made, video])


def connect(
    model: Model,
    first: np.ndarray,
    second: np.ndarray,
    prompt: str,
    seconds: float,
    *,
    seed: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """Two videos with a passage between them: uint8 [F, H, W, 3].

    Args:
      first, second: uint8 [F, H, W, 3] of one size, at the model's frame rate.
      prompt: what is to be seen.
      seconds: duration of the passage, to the nearest latent frame.
      seed, **sampling: see `extend`.

    Raises:
      ValueError: sizes that differ, or a video that is too short.
    """
    made = _passage(model, first, second, prompt, seconds, seed, sampling)
    return np.concatenate([first, made, second])


def loop(
    model: Model, video: np.ndarray, prompt: str, seconds: float, *, seed: int = 0, **sampling: Any
) -> np.ndarray:
    """A video and a passage from its end to its beginning, to be shown over and over.

    Args and errors: see `connect`.
    """
    made = _passage(model, video, video, prompt, seconds, seed, sampling)
    return np.concatenate([video, made])


def edit(
    model: Model,
    video: np.ndarray,
    prompt: str | list[str],
    strength: float | Sequence[float],
    **sampling: Any,
) -> np.ndarray:
    """A video made anew from its own noised latents (SDEdit, arXiv 2108.01073).

    Args:
      video: uint8 [F, H, W, 3] at the model's frame rate, which is made anew in one pass: best
        about as long as the model's own.
      prompt: what is to be seen.
      strength: 0 gives the video as the VAE shows it, 1 takes nothing from it; or one number a
        frame, of which each latent frame takes the mean of its own.
      **sampling: seed, steps, guidance, solver of `Model.sample`.

    Returns:
      uint8 frames, as many as the video has, or [B, F, H, W, 3] for a list of prompts.

    Raises:
      ValueError: a strength outside [0, 1], or not as many as frames.
    """
    _check_frames(model, video, "the video")
    stride, count = model.vae_config.temporal_stride, len(video)
    each = np.asarray(strength, np.float32)
    if each.ndim and each.shape != (count,):
        raise ValueError(
            f"{each.size} strengths do not fit {count} frames: give one, or one for each frame"
        )
    if not ((each >= 0) & (each <= 1)).all():
        raise ValueError(f"strength {strength} must lie in 0 (as it is) to 1 (made anew)")
    # The last latent frame is filled up with the last frame.
    padded = video[np.minimum(np.arange(1 + -(-(count - 1) // stride) * stride), count - 1)]
    if each.ndim:
        each = each[np.minimum(np.arange(len(padded)), count - 1)]
        each = np.concatenate([each[:1], each[1:].reshape(-1, stride).mean(axis=1)])
    given = Given(model.encode(padded[None])[0], 0, each)
    frames = len(padded)
    clip = model.sample(prompt, size=_size(video), frames=frames, given=[given], **sampling)
    return clip[..., :count, :, :, :]


def from_keyframes(
    model: Model,
    keyframes: Mapping[float, np.ndarray],
    prompt: str | list[str],
    *,
    frames: int | None = None,
    strength: float = 0.0,
    **sampling: Any,
) -> np.ndarray:
    """A video in which given images appear at given times.

    Args:
      keyframes: images uint8 [H, W, 3] of one size by their time in seconds.
      prompt: what happens.
      frames: length of the video; None for the model's own.
      strength: 0 keeps the images; more takes them as hints.
      **sampling: seed, steps, guidance, solver of `Model.sample`.

    Raises:
      ValueError: no image, one outside the video, or two on the same latent frame.
    """
    if not keyframes:
        raise ValueError("there is no keyframe; give at least one image and its time")
    frames = model.settings.frames if frames is None else frames
    stride = model.vae_config.temporal_stride
    first = next(iter(keyframes.values()))
    given, times = [], {}
    for time, image in sorted(keyframes.items()):
        _check_frames(model, image[None], f"the keyframe at {time} s")
        _check_same_size(first, image)
        frame = round(check_seconds(time) * model.fps)
        if not 0 <= frame < frames:
            raise ValueError(
                f"the keyframe at {time} s lies outside the video of {frames / model.fps:.3g} s: "
                "move it, or ask for a longer video"
            )
        start = -(-frame // stride)
        if start in times:
            raise ValueError(
                f"the keyframes at {times[start]} s and {time} s fall on one latent frame, which "
                f"holds {stride / model.fps:.3g} s: move them apart"
            )
        times[start] = time
        still = np.repeat(image[None], stride, axis=0)
        latents = model.encode(image[None, None])[0] if start == 0 else _inside(model, still)
        given.append(Given(latents, start, strength))
    return model.sample(prompt, size=_size(first), frames=frames, given=given, **sampling)


def check_seconds(seconds: float) -> float:
    """The duration, if it is one: a number of at most a day.

    Raises:
      ValueError: infinite, not a number, or longer than that.
    """
    if not abs(seconds) <= _DAY:
        raise ValueError(f"{seconds} seconds are out of range; use up to {_DAY}")
    return seconds


def _size(frames: np.ndarray) -> tuple[int, int]:
    """(width, height) of frames [..., H, W, 3]."""
    return frames.shape[-2], frames.shape[-3]


def _frames(model: Model, latent_frames: int) -> int:
    """Frames of a clip of that many latent frames."""
    return 1 + (latent_frames - 1) * model.vae_config.temporal_stride


def _check_frames(model: Model, frames: np.ndarray, name: str) -> None:
    if frames.dtype != np.uint8:
        raise ValueError(f"{name} is {frames.dtype}; give uint8 pixels, 0 to 255")
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"{name} has shape {frames.shape}; it must be [F, H, W, 3]")
    model.latent_shape(_size(frames), 1)


def _check_same_size(first: np.ndarray, second: np.ndarray) -> None:
    if _size(first) != _size(second):
        raise ValueError(
            f"sizes {_size(first)} and {_size(second)} (width, height) differ: resize one of them"
        )


def _window(model: Model) -> tuple[int, int]:
    """Latent frames of a window, and how many of them it takes from its neighbour: about half."""
    length = model.latent_shape(model.settings.size, model.settings.frames)[0]
    if length < 3:
        raise ValueError(
            f"the model makes {model.settings.frames} frames, {length} latent frames: too few to "
            "go on from one clip to another; train it on longer ones"
        )
    return length, length // 2


def _tail(model: Model, video: np.ndarray, context: int, name: str) -> jax.Array:
    """Latents of the end of a video, as the `context` first latent frames of a clip."""
    count = _frames(model, context)
    if len(video) < count:
        raise ValueError(
            f"{name} has {len(video)} frames, and going on from its end takes {count}: give a "
            "longer one, or animate an image"
        )
    return model.encode(video[None, len(video) - count :])[0]


def _head(model: Model, video: np.ndarray, context: int, name: str) -> jax.Array:
    """Latents of the beginning of a video, as the `context` last latent frames of a clip."""
    count = context * model.vae_config.temporal_stride
    if len(video) < count:
        raise ValueError(
            f"{name} has {len(video)} frames, and leading up to its beginning takes {count}: give "
            "a longer one"
        )
    return _inside(model, video[:count])


def _inside(model: Model, frames: np.ndarray) -> jax.Array:
    """Latents of frames that do not begin their clip, a multiple of the temporal stride."""
    still = np.repeat(frames[:1], _frames(model, 1 + _STILL), axis=0)
    return model.encode(np.concatenate([still, frames])[None])[0, 1 + _STILL :]


def _decode(model: Model, latents: jax.Array, skip: int) -> np.ndarray:
    """Frames of latents [T, h, w, C] but the first `skip`."""
    return np.concatenate(list(model.decode(latents[None])), axis=1)[0, skip:]


def _forwards(
    model: Model,
    kept: jax.Array,
    prompt: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    sampling: Mapping[str, Any],
) -> jax.Array:
    """`kept` and the latents of at least `count` frames after it."""
    length, context = _window(model)
    latents = kept
    for step in range(-(-count // ((length - context) * model.vae_config.temporal_stride))):
        made = model.sample_latents(
            prompt,
            size=size,
            frames=_frames(model, length),
            seed=(seed, _FORWARDS, step),
            given=[Given(latents[-context:], 0)],
            **sampling,
        )[0]
        latents = jnp.concatenate([latents, made[context:]])
    return latents


def _backwards(
    model: Model,
    kept: jax.Array,
    prompt: str,
    count: int,
    size: tuple[int, int],
    seed: int,
    sampling: Mapping[str, Any],
) -> jax.Array:
    """Latents of at least `count` frames that lead up to `kept`.

    The first latent frame of a window is a single frame, and only the earliest window may begin
    with one: the others leave theirs out.
    """
    length, context = _window(model)
    latents = kept
    windows = -(-(count - 1) // ((length - context - 1) * model.vae_config.temporal_stride))
    for step in range(max(1, windows)):
        made = model.sample_latents(
            prompt,
            size=size,
            frames=_frames(model, length),
            seed=(seed, _BACKWARDS, step),
            given=[Given(latents[:context], length - context)],
            **sampling,
        )[0]
        first, rest = made[:1], made[1 : length - context]
        latents = jnp.concatenate([rest, latents])
    return jnp.concatenate([first, latents[: len(latents) - len(kept)]])


def _passage(
    model: Model,
    first: np.ndarray,
    second: np.ndarray,
    prompt: str,
    seconds: float,
    seed: int,
    sampling: Mapping[str, Any],
) -> np.ndarray:
    """Frames between the end of one video and the beginning of another.

    What one window cannot hold between both ends is first added to the end of the first.
    """
    _check_frames(model, first, "the first video")
    _check_frames(model, second, "the second video")
    _check_same_size(first, second)
    stride = model.vae_config.temporal_stride
    length, context = _window(model)
    count = round(check_seconds(seconds) * model.fps / stride)
    if count < 1:
        raise ValueError(
            f"{seconds} seconds hold no latent frame of {stride / model.fps:.3g} s; give more"
        )
    # Both ends show how they move, the first by all of its context.
    middle = min(count, length - context - 1)
    tail = min(context, length - context - middle)
    before = latents = _tail(model, first, context, "the first video")
    if count > middle:
        extra = (count - middle) * stride
        latents = _forwards(model, before, prompt, extra, _size(first), seed, sampling)
        latents = latents[: context + count - middle]
    after = _head(model, second, tail, "the second video")
    made = model.sample_latents(
        prompt,
        size=_size(first),
        frames=_frames(model, context + middle + tail),
        seed=(seed, _BETWEEN),
        given=[Given(latents[-context:], 0), Given(after, context + middle)],
        **sampling,
    )[0]
    latents = jnp.concatenate([latents, made[context : context + middle]])
    return _decode(model, latents, skip=_frames(model, len(before)))
