"""Whether parts of a model that are whole by themselves belong together."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from sora_jax.models.text import TextConfig

Path = pathlib.Path | str


def check_fit(
    folder: Path, configs: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raises ValueError where parts that are whole by themselves do not fit each other.

    Args:
      folder: to be named.
      configs: sizes of each part, see `weights.parts.Parts`.
      mean, std: of the channels of latents.
    """
    vae, dit, text = (configs[part] for part in ("vae", "dit", "text"))
    image = configs.get("image")
    channels = vae.latent_channels
    beside = vae.temporal_stride + channels if dit.image_channels else 0
    image_width = image.width if image else 0
    tokens = 2 * image.tokens if image and dit.image_positions else 0
    for what, given, fits in (
        ("latent_channels of the dit", dit.latent_channels, channels),
        ("length of latent_mean", len(mean), channels),
        ("length of latent_std", len(std), channels),
        ("text_width of the dit", dit.text_width, text.width),
        ("image_channels of the dit", dit.image_channels, beside),
        ("image_width of the dit", dit.image_width, image_width),
        ("image_positions of the dit", dit.image_positions, tokens),
    ):
        if given != fits:
            raise ValueError(
                f"{folder}: the {what} is {given}, and the parts beside it need {fits}; they are "
                "of different models: take all of them from one"
            )
    if configs.get("dit_low", dit) != dit:
        raise ValueError(
            f"{folder}: its transformers of high and of low noise have different sizes; they are "
            "of different models: take both from one"
        )


def check_adapted(folder: Path, configs: Mapping[str, Any], adapters: Mapping[str, Path]) -> None:
    """Raises ValueError where adapters by part are for a second transformer, and there is none."""
    if "dit_low" in adapters and "dit_low" not in configs:
        raise ValueError(
            f"{folder} has one transformer, and the adapters of {adapters['dit_low']} are given as "
            "those of a second one, for low noise; give them as lora"
        )


def check_vocabulary(folder: Path, ids: int, text: TextConfig) -> None:
    """Raises ValueError unless the text encoder of a model folder knows all ids of its tokenizer.

    Args:
      folder: to be named.
      ids: of the tokenizer.
      text: sizes of the text encoder.
    """
    if ids > text.vocabulary:
        raise ValueError(
            f"{folder}: its tokenizer has {ids} ids and its text encoder only {text.vocabulary}; "
            "take both from one model"
        )
