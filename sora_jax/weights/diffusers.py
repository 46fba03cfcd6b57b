"""Parameters to and from the tensors of PyTorch diffusers' Wan, transformers' UMT5 and CLIP.

Pure renaming and reordering, so both directions are exact in every bit and keep the dtype. The
tensors are a flat mapping from PyTorch names to numpy arrays in PyTorch's layouts, as a safetensors
file holds them; the parameters are the nested dict that the networks here take, blocks stacked.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.entries import Entry, list_entries, name_image_tensors

Tensors = Mapping[str, np.ndarray]


def vae_from_diffusers(tensors: Tensors, config: VAEConfig) -> dict[str, Any]:
    """Parameters of our VAE from the state dict of an AutoencoderKLWan.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than `config` asks for.
    """
    return _load(tensors, list_entries("vae", config))


def vae_to_diffusers(params: Mapping[str, Any], config: VAEConfig) -> dict[str, np.ndarray]:
    """The inverse of `vae_from_diffusers`; raises as it does."""
    return _save(params, list_entries("vae", config))


def dit_from_diffusers(tensors: Tensors, config: DiTConfig) -> dict[str, Any]:
    """Parameters of our transformer from the state dict of a WanTransformer3DModel.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than `config` asks for.
    """
    return _load(tensors, list_entries("dit", config))


def dit_to_diffusers(params: Mapping[str, Any], config: DiTConfig) -> dict[str, np.ndarray]:
    """The inverse of `dit_from_diffusers`; raises as it does."""
    return _save(params, list_entries("dit", config))


def text_from_transformers(tensors: Tensors, config: TextConfig) -> dict[str, Any]:
    """Parameters of our text encoder from the state dict of a UMT5EncoderModel.

    A state dict in memory names its embedding twice and a file once; either name will do.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than `config` asks for.
    """
    tensors = dict(tensors)
    copy = tensors.pop("encoder.embed_tokens.weight", None)
    if copy is not None and not np.array_equal(tensors.setdefault("shared.weight", copy), copy):
        raise ValueError(
            "'shared.weight' and 'encoder.embed_tokens.weight' differ, but UMT5 has one embedding; "
            "remove the one that is not meant"
        )
    return _load(tensors, list_entries("text", config))


def text_to_transformers(params: Mapping[str, Any], config: TextConfig) -> dict[str, np.ndarray]:
    """The inverse of `text_from_transformers`, with the embedding as 'shared.weight' only."""
    return _save(params, list_entries("text", config))


def image_from_transformers(tensors: Tensors, config: ImageConfig) -> dict[str, Any]:
    """Parameters of our image encoder from the state dict of a CLIPVisionModel.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than `config` asks for.
    """
    return _load(name_image_tensors(tensors), list_entries("image", config))


def image_to_transformers(params: Mapping[str, Any], config: ImageConfig) -> dict[str, np.ndarray]:
    """The inverse of `image_from_transformers`; raises as it does."""
    return _save(params, list_entries("image", config))


def _load(tensors: Tensors, entries: Sequence[Entry]) -> dict[str, Any]:
    wanted = {name: entry.their_shape() for entry in entries for name in entry.names()}
    check_shapes({name: tuple(x.shape) for name, x in tensors.items()}, wanted)
    flat = {}
    for entry in entries:
        parts = [entry.layout.ours(np.asarray(tensors[name])) for name in entry.names()]
        flat[entry.path] = np.stack(parts) if entry.stacked else np.ascontiguousarray(parts[0])
    return traverse_util.unflatten_dict(flat, sep="/")


def _save(params: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(params, sep="/")
    found = {path: tuple(x.shape) for path, x in flat.items()}
    check_shapes(found, {entry.path: entry.shape for entry in entries})
    tensors = {}
    for entry in entries:
        x = np.asarray(flat[entry.path])
        for name, part in zip(entry.names(), x if entry.stacked else [x]):
            tensors[name] = np.ascontiguousarray(entry.layout.theirs(part))
    return tensors


def check_shapes(found: Mapping[str, tuple], wanted: Mapping[str, tuple]) -> None:
    """Raises ValueError, naming the first, unless both have the same names and shapes."""
    for name in sorted(set(found) | set(wanted)):
        if name not in found:
            raise ValueError(f"the tensor {name!r} is missing; is it another configuration?")
        if name not in wanted:
            raise ValueError(f"the tensor {name!r} is unknown; is it another configuration?")
        if found[name] != wanted[name]:
            raise ValueError(
                f"the tensor {name!r} has shape {found[name]}, the configuration asks for "
                f"{wanted[name]}"
            )
