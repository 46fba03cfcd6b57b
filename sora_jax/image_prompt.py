"""Which images a model that sees images beside the noise can be given, and where in a clip."""

from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.diffusion.conditioning import Given
from sora_jax.diffusion.guidance import Guidance
from sora_jax.models.dit_config import DiTConfig


def check(
    config: DiTConfig,
    images: Mapping[int, np.ndarray] | None,
    given: Sequence[Given],
    size: tuple[int, int],
    frames: int,
    guidance: Guidance,
) -> None:
    """Refuses what a transformer cannot take, before anything runs.

    Args:
      config: of the transformer.
      images: uint8 [H, W, 3] by their frames.
      given: latents of frames, which are for the other kind of model.
      size: (width, height) of the clip.
      frames: of the clip.
      guidance: of the call; that by given frames is for the other kind of model too.

    Raises:
      ValueError: images for a model that sees none, or none for one that does; frames, sizes,
        types of numbers or guidance that the model does not take.
    """
    if not config.image_channels:
        if images:
            raise ValueError(
                "this model sees no images beside the noise; give frames as latents, as "
                "sora_jax.animate does"
            )
        return
    if given:
        raise ValueError(
            "this model takes frames as images and not as latents: animate an image, or take a "
            "text-to-video model"
        )
    if not images:
        raise ValueError(
            "this model makes videos that begin with an image, and there is none: give one "
            "(--image, sora_jax.animate), or take a text-to-video model"
        )
    if guidance.given != 1:
        raise ValueError(
            f"guidance by given frames, {guidance.given:g}, has no meaning for this model, which "
            "sees images in all it is asked: leave it out (--given_guidance), or make it 1"
        )
    if frames == 1:
        raise ValueError("a video of one frame is the image itself; ask for more frames")
    _check_places(config, sorted(images), frames)
    for frame, image in images.items():
        shape = (size[1], size[0], 3)
        if image.dtype != np.uint8 or image.shape != shape:
            raise ValueError(
                f"the image of frame {frame} is {image.dtype} {list(image.shape)}; it must be "
                f"uint8 {list(shape)}, as the clip is"
            )


def _check_places(config: DiTConfig, at: list[int], frames: int) -> None:
    first, both = [0], [0, frames - 1]
    if config.image_positions:
        taken, words = [both], "an image as the first and one as the last frame"
    elif config.image_width:
        taken, words = [first], "one image, as the first frame"
    else:
        taken, words = [first, both], "an image as the first frame, and one as the last if any"
    if at not in taken:
        raise ValueError(
            f"images are at the frames {at} of 0 to {frames - 1}, and this model takes {words}"
        )
