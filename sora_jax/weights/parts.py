"""The networks of a model folder: configurations and parameters, checked against each other."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.models.dit import DiTConfig, init_dit
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.model_folder import load_description, load_part
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


class Parts(NamedTuple):
    """All that a model is made of.

    Attributes:
      vae: with its statistics.
      dit, text: configuration and parameters.
      dit_low: parameters of the transformer for low noise, where there are two of one size.
      settings: the rest of model.json.
      tokenizer: file of the tokenizer.
    """

    vae: LoadedVAE
    dit: tuple[DiTConfig, Any]
    text: tuple[TextConfig, Any]
    settings: dict[str, Any]
    tokenizer: pathlib.Path
    dit_low: Any | None = None


def load_parts(folder: pathlib.Path, dtype: Dtype = _FLOAT32) -> Parts:
    """The networks of a model folder, or of an open model, see `weights.wan`.

    Args:
      folder: of either kind.
      dtype: of the parameters; None for that of the files.

    Raises:
      FileNotFoundError, ValueError: missing, damaged or of another configuration.
    """
    if not (folder / "model.json").is_file() and is_open_model(folder):
        model = open_model(folder)
        params = {
            part: read_part(model.tensors[part], part, config, dtype)
            for part, config in model.configs.items()
        }
        vae = LoadedVAE(
            model.configs["vae"],
            params["vae"],
            np.float32(model.mean),
            np.float32(model.std),
            model.settings["fps"],
        )
        dit, text = ((model.configs[part], params[part]) for part in ("dit", "text"))
        return Parts(vae, dit, text, model.settings, model.tokenizer, params.get("dit_low"))
    description = load_description(folder)
    two = _has_two(folder, description)
    vae, dit, text = (load(folder, dtype) for load in (load_vae, load_dit, load_text))
    low = _params(folder, "dit_low", init_dit, dit[0], dtype) if two else None
    return Parts(vae, dit, text, description, folder / "tokenizer.json", low)


def init_text(config: TextConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a text encoder."""
    return TextEncoder(config).init(key, jnp.ones((1, 1), jnp.int32))["params"]


def load_vae(folder: Path, dtype: Dtype = _FLOAT32) -> LoadedVAE:
    """The VAE of a model folder.

    Args:
      folder: with model.json.
      dtype: of the parameters; None for that of the file.

    Raises:
      FileNotFoundError, ValueError: missing, damaged or of another configuration.
    """
    description = load_description(folder)
    settings = dict(_part(folder, "vae"))
    try:
        mean, std = settings.pop("latent_mean"), settings.pop("latent_std")
        fps = float(description["fps"])
    except KeyError as error:
        raise ValueError(f"{folder}/model.json lacks {error} of the VAE; write it again") from error
    config = _config(VAEConfig, settings, folder)
    params = _params(folder, "vae", init_vae, config, dtype)
    return LoadedVAE(config, params, np.float32(mean), np.float32(std), fps)


def load_dit(folder: Path, dtype: Dtype = _FLOAT32) -> tuple[DiTConfig, Any]:
    """The transformer of a model folder, as `load_vae` loads."""
    config = _config(DiTConfig, _part(folder, "dit"), folder)
    return config, _params(folder, "dit", init_dit, config, dtype)


def load_text(folder: Path, dtype: Dtype = _FLOAT32) -> tuple[TextConfig, Any]:
    """The text encoder of a model folder, as `load_vae` loads."""
    config = _config(TextConfig, _part(folder, "text"), folder)
    return config, _params(folder, "text", init_text, config, dtype)


def _has_two(folder: Path, description: dict[str, Any]) -> bool:
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


def _params(
    folder: Path, name: str, init: Callable[[Any, jax.Array], Any], config: Any, dtype: Dtype
) -> Any:
    shapes = nn.meta.unbox(jax.eval_shape(lambda key: init(config, key), jax.random.key(0)))
    return load_part(folder, name, shapes, dtype)
