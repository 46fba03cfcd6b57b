"""Clips made window by window, in latents: onwards from one, up to one, and between two."""

import dataclasses
import numbers
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.conditioning import Given
from sora_jax.pipeline import Model
from sora_jax.seams import fade_in, fade_out

# Latent frames of stillness, after the single first one, before a clip that is given later. With
# two, its first latent frame is 0.13 standard deviations from what its true past would have made
# of it (shipped VAE), with one 0.18, with none 0.32.
_STILL = 2
_DAY = 24 * 3600
# Numbers of the tasks that draw noise of their own, so that none has another's or that of a clip
# with the same seed.
_FORWARDS, _BACKWARDS, _BETWEEN = 1, 2, 3
ROLLING, RING = 4, 5


def check_seconds(seconds: float) -> float:
    """The duration, if it is one: a number of at most a day.

    Raises:
      ValueError: infinite, not a number, or longer than that.
    """
    if not isinstance(seconds, numbers.Real):
        raise ValueError(f"seconds {seconds!r} are no number; give one, such as 1.5")
    if not abs(seconds) <= _DAY:
        raise ValueError(f"{seconds} seconds are out of range; use up to {_DAY}")
    return seconds


def check_prompt(model: Model, prompt: str) -> None:
    """Raises ValueError unless a model makes videos of one text, and has the room to read it."""
    check_free(model)
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt is {prompt!r}: one video is made here, so give one text")
    model.tokenizer.check_length(prompt, model.settings.text_length)


def check_free(model: Model) -> None:
    """Raises ValueError for a model that makes nothing but what begins with an image."""
    if model.dit_config.image_channels:
        raise ValueError(
            "this model sees images beside the noise and makes videos that begin with one, and no "
            "others: animate an image, or take a text-to-video model"
        )


def size_of(frames: np.ndarray) -> tuple[int, int]:
    """(width, height) of frames [..., H, W, 3]."""
    return frames.shape[-2], frames.shape[-3]


def check_frames(model: Model, frames: np.ndarray, name: str) -> None:
    """Raises ValueError unless frames are uint8 [F, H, W, 3] of a size that the model can make."""
    check_pixels(frames, name)
    model.latent_shape(size_of(frames), 1)


def check_image(model: Model, image: np.ndarray, name: str) -> None:
    """Raises ValueError unless an image is uint8 [H, W, 3] of a size that the model can make."""
    check_pixels(image, name, "[H, W, 3]")
    model.latent_shape(size_of(image), 1)


def check_pixels(frames: np.ndarray, name: str, shape: str = "[F, H, W, 3]") -> None:
    """Raises ValueError unless frames are uint8 of a shape, one letter a side and 3 colours."""
    if not isinstance(frames, (np.ndarray, jax.Array)):
        raise ValueError(
            f"{name} is {reprlib.repr(frames)}; give an array, uint8 {shape}, as "
            "sora_jax.video_io.decode makes one of a file"
        )
    if frames.dtype != np.uint8:
        raise ValueError(f"{name} is {frames.dtype}; give uint8 pixels, 0 to 255")
    if frames.ndim != shape.count(",") + 1 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"{name} has shape {frames.shape}; it must be {shape}")


def check_same_size(first: np.ndarray, second: np.ndarray) -> None:
    """Raises ValueError if two clips or images differ in width or height."""
    if size_of(first) != size_of(second):
        sizes = f"{size_of(first)} and {size_of(second)}"
        raise ValueError(f"sizes {sizes} (width, height) differ: resize one of them")


def window_length(model: Model, purpose: str) -> int:
    """Latent frames of a window, those of the model's own clips.

    Raises:
      ValueError: fewer than the three that every use of windows takes.
    """
    length = model.latent_frames
    if length < 3:
        raise ValueError(
            f"the model makes {model.settings.frames} frames, {length} latent frames: too few to "
            f"{purpose}; train it on longer ones"
        )
    return length


def frames_of(model: Model, latent_frames: int) -> int:
    """Frames of a clip of that many latent frames."""
    return 1 + (latent_frames - 1) * model.vae_config.temporal_stride


def check_tail(model: Model, video: np.ndarray, context: int, name: str) -> None:
    """Raises ValueError if the end of a video is no `context` latent frames."""
    count = frames_of(model, context)
    if len(video) < count:
        raise ValueError(
            f"{name} has {len(video)} frames, and going on from its end takes {count}: give a "
            "longer one, or animate an image"
        )


def check_head(model: Model, video: np.ndarray, context: int, name: str) -> None:
    """Raises ValueError if the beginning of a video is no `context` latent frames."""
    count = context * model.vae_config.temporal_stride
    if len(video) < count:
        raise ValueError(
            f"{name} has {len(video)} frames, and leading up to its beginning takes {count}: give "
            "a longer one"
        )


def encode_tail(model: Model, video: np.ndarray, context: int, name: str) -> jax.Array:
    """Latents of the end of a video, as the `context` first latent frames of a clip.

    Raises:
      ValueError: a video that is too short; `name` is what the message calls it.
    """
    check_tail(model, video, context, name)
    count = frames_of(model, context)
    return model.encode(video[None, len(video) - count :])[0]


def encode_head(model: Model, video: np.ndarray, context: int, name: str) -> jax.Array:
    """Latents of the beginning of a video, as the `context` last latent frames of a clip.

    Raises:
      ValueError: a video that is too short; `name` is what the message calls it.
    """
    check_head(model, video, context, name)
    return encode_inside(model, video[: context * model.vae_config.temporal_stride])


def encode_inside(model: Model, frames: np.ndarray) -> jax.Array:
    """Latents of frames that do not begin their clip, a multiple of the temporal stride."""
    still = np.repeat(frames[:1], frames_of(model, 1 + _STILL), axis=0)
    return model.encode(np.concatenate([still, frames])[None])[0, 1 + _STILL :]


@dataclasses.dataclass(frozen=True)
class Windows:
    """What the windows of one video share.

    Attributes:
      model, prompt, size, seed: as of `Model.sample`; each window has noise of its own.
      sampling: steps, guidance, solver, negative of `Model.sample`.
    """

    model: Model
    prompt: str
    size: tuple[int, int]
    seed: int
    sampling: Mapping[str, Any]

    def __post_init__(self):
        check_prompt(self.model, self.prompt)

    @property
    def length(self) -> int:
        """Latent frames of a window."""
        return window_length(self.model, "go on from one clip to another")

    @property
    def context(self) -> int:
        """Latent frames that a window takes from its neighbour: about half."""
        return self.length // 2

    def after(self, video: np.ndarray, count: int) -> np.ndarray:
        """The `count` frames after a video."""
        kept = encode_tail(self.model, video, self.context, "the video")
        frames = self.model.to_frames(self.forwards(kept, count)[None])[0]
        end = frames_of(self.model, self.context)
        return fade_in(frames[end:][:count], frames[end - 1], video[-1])

    def before(self, video: np.ndarray, count: int) -> np.ndarray:
        """The `count` frames before a video."""
        kept = encode_head(self.model, video, self.context, "the video")
        frames = self.model.to_frames(self.backwards(kept, count)[None])[0]
        end = len(frames) - self.context * self.model.vae_config.temporal_stride
        return fade_out(frames[end - count : end], frames[end], video[0])

    def forwards(self, kept: jax.Array, count: int) -> jax.Array:
        """`kept` and the latents of at least `count` frames after it, [T, h, w, C]."""
        latents = kept
        for step in range(self._needed(count, self.length - self.context)):
            given = [Given(latents[-self.context :], 0)]
            made = self._sample(self.length, given, _FORWARDS, step)
            latents = jnp.concatenate([latents, made[self.context :]])
        return latents

    def backwards(self, kept: jax.Array, count: int) -> jax.Array:
        """Latents of at least `count` frames that lead up to `kept`, and `kept`.

        The first latent frame of a window is a single frame, and only the earliest window may
        begin with one: the others leave theirs out.
        """
        latents = kept
        free = self.length - self.context
        for step in range(max(1, self._needed(count - 1, free - 1))):
            given = [Given(latents[: self.context], free)]
            made = self._sample(self.length, given, _BACKWARDS, step)
            latents = jnp.concatenate([made[1:free], latents])
        return jnp.concatenate([made[:1], latents])

    def between(self, before: jax.Array, after: jax.Array, middle: int) -> jax.Array:
        """The `middle` latent frames from `before` to `after`, in one window."""
        end = len(before) + middle
        given = [Given(before, 0), Given(after, end)]
        return self._sample(end + len(after), given, _BETWEEN)[len(before) : end]

    def _needed(self, count: int, latent_frames: int) -> int:
        """Windows that hold `count` frames, with so many new latent frames each."""
        return -(-count // (latent_frames * self.model.vae_config.temporal_stride))

    def _sample(self, length: int, given: Sequence[Given], *numbers: int) -> jax.Array:
        return self.model.sample_latents(
            self.prompt,
            size=self.size,
            frames=frames_of(self.model, length),
            seed=(self.seed, *numbers),
            given=given,
            **self.sampling,
        )[0]
