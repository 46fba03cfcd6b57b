"""What a run shows a transformer beside the noise: the first frame of a clip, or both ends."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sora_jax.buckets import Bucket
from sora_jax.data.identity import check_images
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.image_pixels import Taken, prepare_seen
from sora_jax.training.frozen import load_image_encoder
from sora_jax.weights.model_folder import find_model


def make_images(
    config: ConfigDict, dit: DiTConfig, buckets: Sequence[Bucket]
) -> tuple[ImageConfig | None, Any]:
    """Sizes and parameters of the image encoder of `config.init`, where its tokens are read.

    Parameters are None where it has done its work before.

    Raises:
      FileNotFoundError, ValueError: one that is missing or does not fit, no model that it is of, or
        what a transformer that sees images beside the noise cannot learn.
    """
    if not dit.image_channels:
        return None, None
    if not config.init:
        raise ValueError(
            f"config.dit.image_channels={dit.image_channels}: a model that sees images beside the "
            "noise is trained from one that does; give its model folder as config.init"
        )
    shown = sorted(name for name, weight in config.patterns.items() if weight and name != "none")
    for name, asked, remedy in (
        ("window", config.window, "make it 0"),
        ("sampling.prompts", config.sampling.prompts, "make it ()"),
        *((f"patterns.{name}", config.patterns[name], "make it 0") for name in shown),
        ("data.buckets", [str(b) for b in buckets if b.frames == 1], "leave images out"),
    ):
        if asked:
            raise ValueError(
                f"config.{name}={asked}: config.init={config.init} makes clips that begin with an "
                f"image, which it sees beside the noise, and all of their frames; {remedy}"
            )
    if not dit.image_width:
        return None, None
    return load_image_encoder(find_model(config.init), read=not config.data.latents)


def image_reading(config: ConfigDict, dit: DiTConfig, image: ImageConfig | None) -> dict[str, Any]:
    """How `make_data` reads images: as they were precomputed, or for the image encoder.

    Raises:
      FileNotFoundError, ValueError: those that were precomputed are of another model.
    """
    if dit.image_channels and config.data.latents:
        check_images(config.data.latents, find_model(config.init), dit.sees_last)
        return {"images": True}
    return {} if image is None else {"look": make_look(image, dit.sees_last)}


def make_look(config: ImageConfig, last: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Frames of a clip to the pixels that an image encoder takes, see `prepare_seen`."""
    taken = Taken(config.side, config.mean, config.std)
    return functools.partial(prepare_seen, config=taken, last=last)
