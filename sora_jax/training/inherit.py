"""What the config of a fine-tuning run leaves to the model that it starts from."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sora_jax.buckets import ASPECT_RATIOS, make_buckets
from sora_jax.diffusion.settings import ModelSettings, parse_settings
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import Parts, open_parts
from sora_jax.weights.wan import is_open_model

# Of `ModelSettings`, what training fixes: the run's own settings say it, see `sampling_settings`.
_FIXED = {"fps", "text_length", "shift", "shift_tokens"}


def inherit(config: ConfigDict) -> ConfigDict:
    """The config with what is absent or None in it, and has a place in a model, taken from there.

    That is of `config.init`: its VAE and text encoder, the transformer's sizes, the length of
    prompts, the shift of levels and all that is said about sampling, the frame rate, and buckets
    of its area and up to its length. Without `config.init` nothing changes.

    Raises:
      FileNotFoundError, ValueError: it names no model folder, a damaged one, or an open model as it
        is published; or `config.sampling` is nothing to sample with.
    """
    if config.get("task") != "dit" or not config.init:
        return config
    folder = find_model(config.init)
    parts, said = _read_model(config.init, folder)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name in ("vae", "text_encoder"):
            if config[name] is None:
                config[name] = str(folder)
        _fill(config.dit, dataclasses.asdict(parts.configs["dit"]), _names(DiTConfig))
        _fill(config.noise, dataclasses.asdict(said), ("shift", "shift_tokens"))
        _fill(config.tokenizer, {"length": said.text_length}, ("length",))
        _fill_sampling(config.sampling, said)
        _fill(config.data, {"fps": said.fps, "buckets": None}, ("fps", "buckets"))
        if config.data.buckets is None:
            config.data.buckets = _buckets(config, parts.configs["vae"])
    return config


def _read_model(init: str, folder: pathlib.Path) -> tuple[Parts, ModelSettings]:
    """The networks of `config.init`, with none of their parameters read, and its settings."""
    if not (folder / "model.json").is_file() and is_open_model(folder):
        raise ValueError(
            f"config.init={init} is an open model as it is published: write it as a model folder "
            f"first, python -m sora_jax.weights import --source={folder} --output=FOLDER"
        )
    try:
        parts = open_parts(folder)
        return parts, parse_settings(parts.settings, folder / "model.json")
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"config.init={init}: {error}") from error


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _fill(settings: ConfigDict, said: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if settings.get(name) is None:
            settings[name] = said[name]


def _fill_sampling(sampling: ConfigDict, said: ModelSettings) -> None:
    """How the model samples, but for what the config says; a number is guidance by the prompt."""
    names = [name for name in _names(ModelSettings) if name not in _FIXED]
    try:
        asked = said.override(**{name: sampling.get(name) for name in names})
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.sampling: {error}") from error
    filled = dataclasses.asdict(asked)
    # Anew: a place for a number takes no mapping.
    if "guidance" in sampling:
        del sampling["guidance"]
    sampling.guidance = ConfigDict(filled["guidance"])
    _fill(sampling, filled, names)


def _buckets(config: ConfigDict, vae: VAEConfig) -> tuple[tuple[int, int, int], ...]:
    """Images, clips of the model's length and of half of it, in the usual shapes.

    No images for a model whose clips begin with one.
    """
    (width, height), frames = config.sampling.size, config.sampling.frames
    stride = vae.temporal_stride
    lengths = (1, 1 + (frames - 1) // (2 * stride) * stride, frames)
    if config.dit.get("image_channels"):
        lengths = tuple(length for length in lengths if length > 1)
    buckets = make_buckets(
        area=width * height,
        aspect_ratios=ASPECT_RATIOS,
        frames=lengths,
        multiple=vae.spatial_stride * config.dit.patch[1],
        temporal=stride,
    )
    return tuple((b.frames, b.height, b.width) for b in buckets)
