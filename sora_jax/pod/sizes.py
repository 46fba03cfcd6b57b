"""What a run's config says about sizes, without its data, weights or folders."""

import dataclasses
import logging
import math
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from sora_jax.buckets import Bucket, batch_size
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.remat import REMAT
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.training.clips import option, read_buckets
from sora_jax.training.setup import DTYPES
from sora_jax.weights.model_folder import load_description
from sora_jax.weights.settings import from_settings

# Sizes of model folders by their names, for those that are not there.
VAES = {
    "wan2.1": VAEConfig(),
    "wan2.2": VAEConfig(160, 256, latent_channels=48, patch=2, shortcuts=True),
}
UMT5_XXL = TextConfig(256384, 4096, 24, 64, 64, 10240)

logger = logging.getLogger("sora_jax")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Networks and inputs of a plan.

    Attributes:
      vae: of the config, or of Wan 2.1 or 2.2 where its folder is not there.
      dit, text: None in a run of the VAE.
      frozen_text: whether the text encoder is used as it is.
      dtype: compute dtype.
      bucket: pixel frames, height and width of a clip.
      words: tokens of a prompt.
      held: what the parameters are held in when sampling, see `sora_jax.load`.
    """

    vae: VAEConfig
    dit: DiTConfig | None
    text: TextConfig | None
    frozen_text: bool
    dtype: Any
    bucket: Bucket
    words: int
    held: str = "float32"

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """[T, h, w, C] of a clip."""
        bucket = self.bucket
        return self.vae.latent_shape(bucket.frames, bucket.height, bucket.width)

    @property
    def tokens(self) -> int:
        """Of the transformer, a clip."""
        return math.prod(self.dit.grid(self.latents[:3]))


def read_sizes(config: ConfigDict, bucket: str | None) -> Sizes:
    """The sizes of a run.

    Args:
      config: of `train.py`.
      bucket: FRAMESxHEIGHTxWIDTH; None for the largest of the config.

    Raises:
      ValueError: a setting that is wrong, or a bucket that the VAE cannot compress.
    """
    dtype = option(config, "dtype", DTYPES)
    option(config, "task", dict.fromkeys(("dit", "vae")))
    dit = text = None
    words = 0
    if config.task == "vae":
        vae = from_settings(VAEConfig, config.vae)
    else:
        option(config, "remat", REMAT)
        name = pathlib.PurePath(config.vae).name
        name = name if name in VAES else "wan2.1"
        vae = _of_folder(config, "vae", VAEConfig, VAES[name], f"{name}'s")
        if config.text_encoder:
            text = _of_folder(config, "text_encoder", TextConfig, UMT5_XXL, "UMT5-XXL's")
        else:
            words = {"vocabulary": config.tokenizer.vocabulary}
            text = from_settings(TextConfig, {**config.text, **words})
        ends = {"latent_channels": vae.latent_channels, "text_width": text.width}
        dit = from_settings(DiTConfig, {**config.dit, **ends})
        words = config.tokenizer.length
    chosen = _read_bucket(bucket) if bucket else max(read_buckets(config.data), key=_pixels)
    frozen = config.task == "dit" and bool(config.text_encoder)
    sizes = Sizes(vae, dit, text, frozen, dtype, chosen, words)
    _ = sizes.latents  # raises
    return sizes


def default_batch(config: ConfigDict, sizes: Sizes, ways: int) -> int:
    """Clips that `config.data` puts into a global batch that is split so many ways."""
    patch = sizes.dit.patch[1] if sizes.dit else 1
    return batch_size(
        sizes.bucket,
        token_budget=config.data.token_budget,
        most_clips=config.data.most_clips,
        multiple_of=ways,
        spatial=sizes.vae.spatial_stride * patch,
        temporal=sizes.vae.temporal_stride,
    )


def _pixels(bucket: Bucket) -> int:
    return bucket.frames * bucket.height * bucket.width


def _read_bucket(text: str) -> Bucket:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ValueError(f"--bucket={text} must be FRAMESxHEIGHTxWIDTH, such as 81x480x832")
    return Bucket(*map(int, text.split("x")))


def _of_folder(config: ConfigDict, key: str, cls: type, default: Any, whose: str) -> Any:
    """Sizes of a network by the description in its model folder, or the default without one."""
    part = "vae" if key == "vae" else "text"
    try:
        settings = dict(load_description(config[key])["parts"][part])
    except FileNotFoundError:
        logger.info("config.%s=%s is not there: planning with %s sizes", key, config[key], whose)
        return default
    except KeyError as error:
        raise ValueError(f"config.{key}={config[key]} has no part {part!r}") from error
    known = {field.name for field in dataclasses.fields(cls)}
    return from_settings(cls, {name: value for name, value in settings.items() if name in known})
