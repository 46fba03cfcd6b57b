"""The networks of a model folder: configurations and parameters, checked against each other."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig, init_image
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text import TextConfig, init_text
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.fit import check_fit
from sora_jax.weights.model_folder import (
    NOT_SETTINGS,
    check_part_file,
    load_description,
    load_part,
)
from sora_jax.weights.settings import from_settings
from sora_jax.weights.streaming import read_part
from sora_jax.weights.wan import is_open_model, open_model

Path = pathlib.Path | str
Dtype = np.dtype | None
_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class LoadedVAE:
    """A VAE and the statistics of its latents.

    Attributes:
      config, params: the network.
      mean, std: float32 [C], of its latents.
      fps: frame rate of the clips it was trained on.
    """

    config: VAEConfig
    params: Any
    mean: np.ndarray
    std: np.ndarray
    fps: float


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that a model is made of, with none of its parameters read.

    Attributes:
      configs: sizes of the "vae", "dit", "text", of the transformer for low noise, "dit_low", where
        there are two of one size, and of the "image" encoder where there is one.
      mean, std: float32 [C], of the latents.
      settings: what model.json holds besides its parts.
      tokenizer: file of the tokenizer.
      load: the parameters of a part, each of which goes through a function before the next is
        read: what a process holds of them at a time is one.
    """

    configs: dict[str, VAEConfig | DiTConfig | TextConfig | ImageConfig]
    mean: np.ndarray
    std: np.ndarray
    settings: dict[str, Any]
    tokenizer: pathlib.Path
    load: Callable[[str, Callable[[Any], Any]], Any]


def open_parts(folder: pathlib.Path, dtype: Dtype = _FLOAT32) -> Parts:
    """The networks of a model folder, or of an open model, see `weights.wan`.

    Args:
      folder: of either kind.
      dtype: of the parameters; None for that of the files, int8 for that of the matrices.

    Raises:
      FileNotFoundError, ValueError: missing, of another configuration or of different models, or
        damaged so that it shows in a header. Damage to numbers shows when they are read.
    """
    if not (folder / "model.json").is_file() and is_open_model(folder):
        model = open_model(folder)

        def load_open(part: str, place: Callable[[Any], Any]) -> Any:
            return read_part(model.tensors[part], part, model.configs[part], dtype, place)

        mean, std = np.float32(model.mean), np.float32(model.std)
        return Parts(model.configs, mean, std, model.settings, model.tokenizer, load_open)
    description = load_description(folder)
    vae, mean, std, _ = _read_vae(folder)
    configs = {
        "vae": vae,
        "dit": _config(DiTConfig, _part(folder, "dit"), folder),
        "text": _config(TextConfig, _part(folder, "text"), folder),
    }
    unknown = sorted(set(description["parts"]) - set(_INITS))
    if unknown:
        raise ValueError(
            f"{folder}/model.json has the part {unknown[0]!r}, which is none of {sorted(_INITS)}; "
            "write the model folder again"
        )
    if has_two(folder, description):
        configs["dit_low"] = configs["dit"]
    if "image" in description["parts"]:
        configs["image"] = _config(ImageConfig, _part(folder, "image"), folder)
    shapes = {name: _shapes(_INITS[name], config) for name, config in configs.items()}
    for name in configs:
        check_part_file(folder, name, shapes[name])
    check_fit(folder, configs, mean, std)

    def load(part: str, place: Callable[[Any], Any]) -> Any:
        return load_part(folder, part, shapes[part], dtype, place)

    settings = {name: description[name] for name in description if name not in NOT_SETTINGS}
    return Parts(configs, mean, std, settings, folder / "tokenizer.json", load)


_INITS = {
    "vae": init_vae,
    "dit": init_dit,
    "dit_low": init_dit,
    "text": init_text,
    "image": init_image,
}


def load_vae(folder: Path) -> LoadedVAE:
    """The VAE of a model folder, float32.

    Raises:
      FileNotFoundError, ValueError: missing, damaged or of another configuration.
    """
    config, mean, std, fps = _read_vae(folder)
    return LoadedVAE(config, load_part(folder, "vae", _shapes(init_vae, config)), mean, std, fps)


def _read_vae(folder: Path) -> tuple[VAEConfig, np.ndarray, np.ndarray, float]:
    """Sizes of the VAE, mean and deviation of its latents, and its frame rate."""
    description = load_description(folder)
    settings = dict(_part(folder, "vae"))
    try:
        mean, std = settings.pop("latent_mean"), settings.pop("latent_std")
        fps = description["fps"]
    except KeyError as error:
        raise ValueError(f"{folder}/model.json lacks {error} of the VAE; write it again") from error
    config = _config(VAEConfig, settings, folder)
    held = {}
    for name, value in (("latent_mean", mean), ("latent_std", std)):
        numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
        with np.errstate(over="ignore"):
            held[name] = np.float32(value if numbers else [])
        if not held[name].size or not np.isfinite(held[name]).all():
            raise ValueError(
                f"{folder}/model.json: {name} is {value!r}, and must be a number for each latent "
                "channel; write the model folder again"
            )
    if not held["latent_std"].min() > 0:
        raise ValueError(
            f"{folder}/model.json: latent_std {min(std)} must be positive; write the model folder "
            "again"
        )
    if type(fps) not in (int, float) or not 0 < fps < math.inf:
        raise ValueError(
            f"{folder}/model.json: fps {fps!r} must be a positive number, such as 16.0; write the "
            "model folder again"
        )
    return config, held["latent_mean"], held["latent_std"], float(fps)


def load_dit(folder: Path, dtype: Dtype = _FLOAT32, part: str = "dit") -> tuple[DiTConfig, Any]:
    """The transformer of a model folder, as `load_vae` loads; dtype None for that of the file.

    Of two, the one that `part` names.
    """
    config = _config(DiTConfig, _part(folder, part), folder)
    return config, load_part(folder, part, _shapes(init_dit, config), dtype)


def load_text(folder: Path) -> tuple[TextConfig, Any]:
    """The text encoder of a model folder, as `load_vae` loads."""
    config = _config(TextConfig, _part(folder, "text"), folder)
    return config, load_part(folder, "text", _shapes(init_text, config))


def has_two(folder: Path, description: dict[str, Any]) -> bool:
    """Whether a model has a second transformer, for low noise; raises ValueError if by half."""
    parts, boundary = description.get("parts", {}), description.get("boundary")
    if (boundary is None) != ("dit_low" not in parts):
        raise ValueError(
            f"{folder}: the boundary between two transformers is {boundary}, and the parts are "
            f"{sorted(parts)}; a model has both, the level and 'dit_low', or neither"
        )
    if boundary is not None and parts["dit_low"] != _part(folder, "dit"):
        raise ValueError(
            f"{folder}: the transformers of high and of low noise have different sizes in "
            "model.json; they are of different models: take both from one"
        )
    return boundary is not None


def _part(folder: Path, name: str) -> dict[str, Any]:
    parts = load_description(folder).get("parts", {})
    if name not in parts:
        raise ValueError(
            f"{folder} has no {name!r} part, only {sorted(parts)}; a model that samples needs vae, "
            "dit and text: a run of the transformer writes all three"
        )
    return parts[name]


def _config(cls: type, settings: dict[str, Any], folder: Path) -> Any:
    try:
        return from_settings(cls, settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder}/model.json: {error}; write the model folder again") from error


def _shapes(init: Callable[[Any, jax.Array], Any], config: Any) -> Any:
    return nn.meta.unbox(abstract_params(init, config))
