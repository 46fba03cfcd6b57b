"""The networks of a model folder: configurations and parameters, checked against each other."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.models.dit import DiTConfig, init_dit
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.model_folder import load_description, load_part
from sora_jax.weights.settings import from_settings

Path = pathlib.Path | str


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


def init_text(config: TextConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a text encoder."""
    return TextEncoder(config).init(key, jnp.ones((1, 1), jnp.int32))["params"]


def load_vae(folder: Path) -> LoadedVAE:
    """The VAE of a model folder.

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
    params = _params(folder, "vae", init_vae, config)
    return LoadedVAE(config, params, np.float32(mean), np.float32(std), fps)


def load_dit(folder: Path) -> tuple[DiTConfig, Any]:
    """The transformer of a model folder; raises as `load_vae` does."""
    config = _config(DiTConfig, _part(folder, "dit"), folder)
    return config, _params(folder, "dit", init_dit, config)


def load_text(folder: Path) -> tuple[TextConfig, Any]:
    """The text encoder of a model folder; raises as `load_vae` does."""
    config = _config(TextConfig, _part(folder, "text"), folder)
    return config, _params(folder, "text", init_text, config)


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


def _params(folder: Path, name: str, init: Callable[[Any, jax.Array], Any], config: Any) -> Any:
    shapes = nn.meta.unbox(jax.eval_shape(lambda key: init(config, key), jax.random.key(0)))
    return load_part(folder, name, shapes)
