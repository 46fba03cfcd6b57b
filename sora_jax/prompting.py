"""Prompting with images and videos: animate, extend, edit, enlarge, keyframes.

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
from sora_jax.seams import fade_in
from sora_jax.windows import (
    Windows,
    check_frames,
    check_free,
    check_image,
    check_pixels,
    check_same_size,
    check_seconds,
    encode_inside,
    size_of,
)

# Of the strengths tried with the shipped model, the one at which drafts keep their layout, and what
# is made is right, most often (docs/prompting.md).
ENLARGE = 0.3
# Sides on the grid are seldom in exactly the same ratio; so much is not seen.
_STRETCH = 1.1


def animate(
    model: Model, image: np.ndarray, prompt: str | list[str], **sampling: Any
) -> np.ndarray:
    """A video that begins with an image: uint8 [F, H, W, 3], or [B, F, H, W, 3] for a list.

    Args:
      image: uint8 [H, W, 3]; the video has its size.
      prompt: what happens.
      **sampling: frames, seed, steps, guidance, solver, negative of `Model.sample`.

    A model that sees images beside the noise makes the first frame too, much like the image.
    """
    check_image(model, image, "the image")
    if sampling.get("frames") == 1:
        raise ValueError("a video of one frame is the image itself; ask for more frames")
    if model.dit_config.image_channels:
        return model.sample(prompt, size=size_of(image), images={0: image}, **sampling)
    first = Given(model.encode(image[None, None])[0], 0)
    clip = model.sample(prompt, size=size_of(image), given=[first], **sampling)
    clip[..., 1:, :, :, :] = fade_in(clip[..., 1:, :, :, :], clip[..., 0, :, :, :], image)
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
      **sampling: steps, guidance, solver, negative of `Model.sample`.

    Returns:
      uint8 frames; those of `video` are among them unchanged.

    Raises:
      ValueError: nothing to add, or a video that is too short to go on from.
    """
    check_frames(model, video, "the video")
    count = round(abs(check_seconds(seconds)) * model.fps)
    if count < 1:
        raise ValueError(
            f"{seconds} seconds are less than a frame of {1 / model.fps:.3g} seconds; give more"
        )
    windows = Windows(model, prompt, size_of(video), seed, sampling)
    if seconds > 0:
        return np.concatenate([video, windows.after(video, count)])
    return np.concatenate([windows.before(video, count), video])


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
      **sampling: seed, steps, guidance, solver, negative of `Model.sample`.

    Returns:
      uint8 frames, as many as the video has, or [B, F, H, W, 3] for a list of prompts.

    Raises:
      ValueError: a strength outside [0, 1], or not as many as frames.
    """
    check_frames(model, video, "the video")
    check_free(model)
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
    clip = model.sample(prompt, size=size_of(video), frames=frames, given=[given], **sampling)
    return clip[..., :count, :, :, :]


def enlarge(
    model: Model,
    video: np.ndarray,
    prompt: str | list[str],
    size: tuple[int, int],
    strength: float = ENLARGE,
    **sampling: Any,
) -> np.ndarray:
    """A draft at its full size, or any video at a larger one: what is where stays as it was.

    The frames are enlarged, and made anew from there on (see `edit`).

    Args:
      video: uint8 [F, H, W, 3] at the model's frame rate, or one frame.
      prompt: what is to be seen.
      size: (width, height) of the result.
      strength: how much is made anew; less keeps more of the draft, and of its blur.
      **sampling: seed, steps, guidance, solver, negative of `Model.sample`.

    Raises:
      ValueError: a size that is smaller, of another shape, or off the model's grid.
    """
    check_pixels(video, "the video")
    check_free(model)
    size = model.settings.override(size=size).size
    check_enlarged(model, size_of(video), size)
    width, height = size
    shape = (len(video), height, width, 3)
    large = jax.image.resize(jnp.float32(video), shape, "cubic")
    large = np.asarray(jnp.clip(jnp.round(large), 0, 255).astype(jnp.uint8))
    return edit(model, large, prompt, strength, **sampling)


def check_enlarged(model: Model, small: tuple[int, int], large: tuple[int, int]) -> None:
    """Raises ValueError unless (width, height) `small` can be enlarged to `large`."""
    model.latent_shape(large, 1)
    factors = [big / little for big, little in zip(large, small)]
    if min(factors) < 1:
        raise ValueError(f"{small} is not smaller than {large} (width, height): enlarge less")
    if max(factors) > _STRETCH * min(factors):
        raise ValueError(
            f"{small} and {large} (width, height) are of different shapes: what is enlarged would "
            "be stretched; choose sides in the same ratio"
        )


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

    A model that sees images beside the noise takes one at the beginning, and one on the last frame.

    Args:
      keyframes: images uint8 [H, W, 3] of one size by their time in seconds.
      prompt: what happens.
      frames: length of the video; None for the model's own.
      strength: 0 keeps the images; more takes them as hints.
      **sampling: seed, steps, guidance, solver, negative of `Model.sample`.

    Raises:
      ValueError: no image, one outside the video, or two on the same latent frame.
    """
    if not keyframes or not isinstance(keyframes, Mapping):
        raise ValueError("there is no keyframe; give at least one image and its time, {0.0: IMAGE}")
    frames = model.settings.frames if frames is None else frames
    stride = model.vae_config.temporal_stride
    first = next(iter(keyframes.values()))
    given, times, images = [], {}, {}
    beside = model.dit_config.image_channels > 0
    if beside and strength:
        raise ValueError(
            f"strength {strength}: this model takes images as they are; leave the strength at 0"
        )
    for time, image in sorted(keyframes.items()):
        check_image(model, image, f"the keyframe at {time} s")
        check_same_size(first, image)
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
        if beside:
            images[frame] = image
            continue
        still = np.repeat(image[None], stride, axis=0)
        latents = model.encode(image[None, None])[0] if start == 0 else encode_inside(model, still)
        given.append(Given(latents, start, strength))
    sampling |= {"images": images} if beside else {"given": given}
    return model.sample(prompt, size=size_of(first), frames=frames, **sampling)
