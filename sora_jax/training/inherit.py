"""What the config of a fine-tuning run leaves to the model that it starts from."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sora_jax.buckets import ASPECT_RATIOS, make_buckets
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.model_folder import find_model, load_description
from sora_jax.weights.settings import from_settings
from sora_jax.weights.wan import is_open_model

_PARTS = {"vae", "dit", "text"}
_MORE = {"dit_low", "image"}


def inherit(config: ConfigDict) -> ConfigDict:
    """The config with what is absent or None in it, and has a place in a model, taken from there.

    That is of `config.init`: its VAE and text encoder, the transformer's sizes, the length of
    prompts, the shift of levels and all that is said about sampling, the frame rate, and buckets
    of its area and up to its length. Without `config.init` nothing changes.

    Raises:
      FileNotFoundError, ValueError: it names no model folder, or a model that is not trained here.
    """
    if config.get("task") != "dit" or not config.init:
        return config
    folder = find_model(config.init)
    if not (folder / "model.json").is_file() and is_open_model(folder):
        raise ValueError(
            f"config.init={config.init} is an open model as it is published: write it as a model "
            f"folder first, python -m sora_jax.weights import --source={folder} --output=FOLDER"
        )
    said = load_description(folder)
    parts = said.get("parts", {})
    missing = sorted(_PARTS - set(parts))
    if missing:
        raise ValueError(
            f"config.init={config.init} has no {missing[0]!r} part, only {sorted(parts)}: give a "
            f"model folder with {sorted(_PARTS)}, such as WORKDIR/model of a transformer's run"
        )
    more = sorted(set(parts) - _PARTS - _MORE)
    if more:
        raise ValueError(
            f"config.init={config.init} has {more[0]!r} beside {sorted(_PARTS)} and at most "
            f"{sorted(_MORE)}, which training does not know; start from a model without it"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name in ("vae", "text_encoder"):
            if config[name] is None:
                config[name] = str(folder)
        _fill(config.dit, parts.get("dit", {}), _names(DiTConfig))
        _fill(config.noise, said, ("shift", "shift_tokens"))
        _fill(config.tokenizer, {"length": said.get("text_length")}, ("length",))
        # What training fixes is told by the run's own settings, see `sampling_settings`.
        fixed = {"fps", "text_length", "shift", "shift_tokens"}
        _fill_guidance(config.sampling, said)
        unless_said = {"negative": ModelSettings.negative}
        _fill(config.sampling, {**unless_said, **said}, set(_names(ModelSettings)) - fixed)
        _fill(config.data, {**said, "buckets": None}, ("fps", "buckets"))
        if config.data.buckets is None:
            config.data.buckets = _buckets(config, parts.get("vae", {}))
    return config


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _fill(settings: ConfigDict, said: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if settings.get(name) is None and name in said:
            settings[name] = said[name]


def _fill_guidance(sampling: ConfigDict, said: Mapping[str, Any]) -> None:
    """Guidance of the model; a number in the config is that by the prompt, and leaves the rest.

    Where it is 1, which is none, the model's negative prompt has no use.
    """
    given, own = sampling.get("guidance"), said.get("guidance")
    if own is not None and (given is None or isinstance(given, (int, float))):
        parts = dict(own) if isinstance(own, Mapping) else {"text": own}
        if given is not None:
            parts |= {"text": given, "text_low": None}
            if given == 1 and sampling.get("negative") is None:
                sampling.negative = ""
        # Anew: a place for a number takes no mapping.
        if "guidance" in sampling:
            del sampling["guidance"]
        sampling.guidance = ConfigDict(parts)


def _buckets(config: ConfigDict, vae: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """Images, clips of the model's length and of half of it, in the usual shapes.

    No images for a model whose clips begin with one.
    """
    (width, height), frames = config.sampling.size, config.sampling.frames
    known = set(_names(VAEConfig))
    sizes = from_settings(VAEConfig, {name: value for name, value in vae.items() if name in known})
    stride = sizes.temporal_stride
    lengths = (1, 1 + (frames - 1) // (2 * stride) * stride, frames)
    if config.dit.get("image_channels"):
        lengths = tuple(length for length in lengths if length > 1)
    buckets = make_buckets(
        area=width * height,
        aspect_ratios=ASPECT_RATIOS,
        frames=lengths,
        multiple=sizes.spatial_stride * config.dit.patch[1],
        temporal=stride,
    )
    return tuple((b.frames, b.height, b.width) for b in buckets)
