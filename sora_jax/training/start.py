"""Where a run begins: with parameters that are drawn, or with those of a model folder."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn

from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import LoadedVAE, load_dit, load_text, load_vae


def start_of_vae(folder: str, config: VAEConfig) -> LoadedVAE | None:
    """The VAE of a model or work folder, to train on; None if none is given.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    if not folder:
        return None
    vae = load_vae(find_model(folder))
    _check_same(folder, "VAE", "vae", vae.config, config)
    return vae


def start_of_dit(folder: str, config: DiTConfig, text_config: TextConfig | None, part: str) -> Any:
    """Parameters {"dit", "text"} of a model or work folder, to train on; None if none is given.

    Args:
      folder: model folder.
      config: sizes of the transformer that is to be trained.
      text_config: sizes of the text encoder that is trained with it; None if it is frozen.
      part: which of two transformers it is.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    if not folder:
        return None
    found, params = load_dit(find_model(folder), part=part)
    _check_same(folder, "transformer", "dit", found, config)
    start = {"dit": params}
    if text_config is not None:
        found, start["text"] = load_text(find_model(folder))
        _check_same(folder, "text encoder", "text", found, text_config)
    return start


def base_of_dit(folder: str, config: DiTConfig, part: str) -> Any:
    """Parameters of the transformer of a model folder, in the dtype of its file, to train beside.

    Args:
      folder: model folder.
      config: sizes that are wanted.
      part: which of two transformers it is.

    Returns:
      Numpy arrays boxed with their logical axes.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    found, params = load_dit(find_model(folder), None, part)
    _check_same(folder, "transformer", "dit", found, config)
    boxed = abstract_params(init_dit, config)
    return jax.tree.map(
        lambda box, x: box.replace_boxed(x),
        boxed,
        params,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )


def _check_same(folder: str, what: str, key: str, found: Any, wanted: Any) -> None:
    for name, value in dataclasses.asdict(wanted).items():
        if getattr(found, name) != value:
            raise ValueError(
                f"config.init={folder} holds a {what} with {name} {getattr(found, name)}, and "
                f"config.{key}.{name} is {value}; make the two the same"
            )
