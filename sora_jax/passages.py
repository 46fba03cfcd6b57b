"""From one video to another: connecting two, and closing one to a loop."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from sora_jax.pipeline import Model
from sora_jax.seams import dissolve, fade_in, fade_out, jumps
from sora_jax.windows import (
    Windows,
    check_frames,
    check_head,
    check_prompt,
    check_same_size,
    check_seconds,
    check_tail,
    encode_head,
    encode_tail,
    frames_of,
    size_of,
)

# The largest jump anywhere on the model's own way from one video to another with which it is taken.
_SEAMLESS = 1.5
# Frames at both ends of a dissolve that show only the video they lie beside.
_ALONE = 2


def connect(
    model: Model,
    first: np.ndarray,
    second: np.ndarray,
    prompt: str | tuple[str, str],
    seconds: float,
    *,
    seed: int = 0,
    **sampling: Any,
) -> np.ndarray:
    """Two videos with a passage between them: uint8 [F, H, W, 3].

    Args:
      first, second: uint8 [F, H, W, 3] of one size, at the model's frame rate.
      prompt: what is to be seen; or what the first shows, and what the second.
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
    check_prompt(model, prompt)
    made = _passage(model, video, video, prompt, seconds, seed, sampling)
    return np.concatenate([video, made])


def _passage(
    model: Model,
    first: np.ndarray,
    second: np.ndarray,
    prompt: str | tuple[str, str],
    seconds: float,
    seed: int,
    sampling: Mapping[str, Any],
) -> np.ndarray:
    """Frames between the end of one video and the beginning of another.

    The model is asked for a way from one to the other. Where it knows none, and the first goes on
    as if there were no second, the first goes on and dissolves into what would lead to the second.
    """
    check_frames(model, first, "the first video")
    check_frames(model, second, "the second video")
    check_same_size(first, second)
    stride = model.vae_config.temporal_stride
    told = (prompt, prompt) if isinstance(prompt, str) else tuple(prompt)
    if len(told) != 2:
        raise ValueError(f"{len(told)} prompts for two videos: give one, or one for each")
    onwards, towards = (Windows(model, text, size_of(first), seed, sampling) for text in told)
    windows = dataclasses.replace(onwards, prompt=_one_after_the_other(model, told))
    count = round(check_seconds(seconds) * model.fps / stride)
    if count < 1:
        raise ValueError(
            f"{seconds} seconds hold no latent frame of {stride / model.fps:.3g} s; give more"
        )
    check_tail(model, first, windows.context, "the first video")
    check_head(model, second, windows.context, "the second video")
    made = _lead(windows, first, second, count)
    video = np.concatenate([first, made, second])
    if jumps(video)[len(first) - 1 : len(first) + len(made)].max() <= _SEAMLESS:
        return made
    going, coming = onwards.after(first, len(made)), towards.before(second, len(made))
    # Both ends go on alone for a moment: of two backgrounds even a trace of the other is seen.
    alone = min(_ALONE, len(made) // 4)
    time = np.clip((np.arange(len(made)) - alone + 1) / (len(made) - 2 * alone + 1), 0, 1)
    return dissolve(going, coming, time * time * (3 - 2 * time))


def _one_after_the_other(model: Model, prompts: tuple[str, str]) -> str:
    """One prompt for both: the second alone where they are the same, or too long together."""
    before, after = prompts
    both = f"{before.rstrip('.')}, then {after}"
    try:
        model.tokenizer.check_length(both, model.settings.text_length)
    except ValueError:
        return after
    return after if before == after else both


def _lead(windows: Windows, first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Frames of `count` latent ones from one video to another, as the model leads there.

    What one window cannot hold between both ends is first added to the end of the first.
    """
    model, length, context = windows.model, windows.length, windows.context
    stride = model.vae_config.temporal_stride
    # Both ends show how they move, the first by all of its context.
    middle = min(count, length - context - 1)
    tail = min(context, length - context - middle)
    latents = encode_tail(model, first, context, "the first video")
    if count > middle:
        latents = windows.forwards(latents, (count - middle) * stride)[: context + count - middle]
    after = encode_head(model, second, tail, "the second video")
    passage = windows.between(latents[-context:], after, middle)
    frames = model.to_frames(jnp.concatenate([latents, passage, after])[None])[0]
    start, end = frames_of(model, context), len(frames) - tail * stride
    made = fade_in(frames[start:end], frames[start - 1], first[-1])
    return fade_out(made, frames[end], second[0])
