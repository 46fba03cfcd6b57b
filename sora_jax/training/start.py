"""Where a run begins: with parameters that are drawn, or with those of a model folder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.dit import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.model_folder import find_model, load_description
from sora_jax.weights.parts import load_dit, load_text, load_vae


def begin(drawn: Any, start: Any) -> Any:
    """`drawn`, a tree of boxes with logical axes, with the values of `start` if there is one."""
    if start is None:
        return drawn
    return jax.tree.map(
        lambda box, x: box.replace_boxed(jnp.asarray(x)),
        drawn,
        start,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )


def start_of_vae(folder: str, config: VAEConfig) -> Any:
    """Parameters of the VAE of a model or work folder, to train on; None if none is given.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    if not folder:
        return None
    vae = load_vae(find_model(folder))
    _check_same(folder, "VAE", "vae", vae.config, config)
    return vae.params


def start_of_dit(folder: str, config: DiTConfig, text_config: TextConfig | None) -> Any:
    """Parameters {"dit", "text"} of a model or work folder, to train on; None if none is given.

    Args:
      folder: model folder.
      config: sizes of the transformer that is to be trained.
      text_config: sizes of the text encoder that is trained with it; None if it is frozen.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    if not folder:
        return None
    if "dit_low" in load_description(find_model(folder)).get("parts", {}):
        raise ValueError(
            f"config.init={folder} holds two transformers, for high and for low noise, and a run "
            "trains one for all levels; give a model of one"
        )
    found, params = load_dit(find_model(folder))
    _check_same(folder, "transformer", "dit", found, config)
    start = {"dit": params}
    if text_config is not None:
        found, start["text"] = load_text(find_model(folder))
        _check_same(folder, "text encoder", "text", found, text_config)
    return start


def _check_same(folder: str, what: str, key: str, found: Any, wanted: Any) -> None:
    for name, value in dataclasses.asdict(wanted).items():
        if getattr(found, name) != value:
            raise ValueError(
                f"config.init={folder} holds a {what} with {name} {getattr(found, name)}, and "
                f"config.{key}.{name} is {value}; make the two the same"
            )
