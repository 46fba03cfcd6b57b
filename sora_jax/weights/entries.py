"""Which tensors of diffusers' Wan, transformers' UMT5 and CLIP each of our parameters is made of.

Names and the order of axes alone: whoever reads or writes such tensors goes by these.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig, init_image
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text import TextConfig, init_text
from sora_jax.models.vae import VAEConfig, init_vae

Reorder = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor's axes differ: `ours` makes ours of theirs, `theirs` the reverse."""

    ours: Reorder
    theirs: Reorder


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our parameters: its path, their name ("{}" is the layer), the layout, our shape."""

    path: str
    name: str
    layout: Layout
    shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self) -> list[str]:
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer) for layer in range(self.shape[0])]

    def their_shape(self) -> tuple[int, ...]:
        shape = self.shape[1:] if self.stacked else self.shape
        return self.layout.theirs(np.broadcast_to(np.float32(0), shape)).shape


_SAME = Layout(lambda x: x, lambda x: x)
_LINEAR = Layout(lambda x: x.T, lambda x: x.T)
_TABLE = Layout(lambda x: x[0], lambda x: x[None])
_CONV_3D = Layout(lambda x: x.transpose(2, 3, 4, 1, 0), lambda x: x.transpose(4, 3, 0, 1, 2))
_CONV_2D = Layout(lambda x: x.transpose(2, 3, 1, 0)[None], lambda x: x[0].transpose(3, 2, 0, 1))
_VIDEO_GAIN = Layout(lambda x: x[:, 0, 0, 0], lambda x: x[:, None, None, None])
_IMAGE_GAIN = Layout(lambda x: x[:, 0, 0], lambda x: x[:, None, None])


@functools.cache
def list_entries(part: str, config: Any) -> tuple[Entry, ...]:
    """All parameters of a part of a model, and which tensors they are made of."""
    list_part = {
        "vae": _vae_entries,
        "dit": _dit_entries,
        "dit_low": _dit_entries,
        "text": _text_entries,
        "image": _image_entries,
    }[part]
    return tuple(list_part(config))


def name_image_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same by the names that published files have: transformers 5 writes them without model."""
    return {f"{_VISION}{name.removeprefix(_VISION)}": x for name, x in tensors.items()}


def _shapes(init: Callable[[Any, jax.Array], Any], config: Any) -> dict[str, tuple[int, ...]]:
    """Our parameters' shapes by path."""
    flat = traverse_util.flatten_dict(nn.meta.unbox(abstract_params(init, config)), sep="/")
    return {path: tuple(x.shape) for path, x in flat.items()}


def _vae_entries(config: VAEConfig) -> list[Entry]:
    levels = len(config.multipliers)
    names = {"encoder/quantize": "quant_conv", "decoder/dequantize": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        for module in ("conv_in", "conv_out", "norm_out"):
            names[f"{half}/{module}"] = f"{half}.{module}"
        for i in range(2):
            names |= _residual(f"{half}/middle/block_{i + 1}", f"{half}.mid_block.resnets.{i}")
        ours, theirs = f"{half}/middle/attention", f"{half}.mid_block.attentions.0"
        for a, b in (("norm", "norm"), ("qkv", "to_qkv"), ("out", "proj")):
            names[f"{ours}/{a}"] = f"{theirs}.{b}"
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        # Without shortcuts blocks and resamplings going down share one numbering.
        first = level * (config.blocks + 1)
        for i in range(config.blocks):
            theirs = f"encoder.down_blocks.{first + i}"
            theirs = f"{down}.resnets.{i}" if config.shortcuts else theirs
            names |= _residual(f"encoder/level_{level}_block_{i}", theirs)
        theirs = f"encoder.down_blocks.{first + config.blocks}"
        theirs = f"{down}.downsampler" if config.shortcuts else theirs
        names |= _resample(f"encoder/level_{level}_down", theirs)
        for i in range(config.blocks + 1):
            names |= _residual(f"decoder/level_{level}_block_{i}", f"{up}.resnets.{i}")
        theirs = f"{up}.upsampler" if config.shortcuts else f"{up}.upsamplers.0"
        names |= _resample(f"decoder/level_{level}_up", theirs)

    entries = []
    for path, shape in _shapes(init_vae, config).items():
        module, leaf = path.rsplit("/", 1)
        image = module.endswith(("/space", "/attention/norm", "/attention/qkv", "/attention/out"))
        if leaf == "kernel":
            leaf, layout = "weight", _CONV_2D if image else _CONV_3D
        elif leaf == "scale":
            leaf, layout = "gamma", _IMAGE_GAIN if image else _VIDEO_GAIN
        else:
            layout = _SAME
        entries.append(Entry(path, f"{names[module]}.{leaf}", layout, shape))
    return entries


def _residual(ours: str, theirs: str) -> dict[str, str]:
    names = {
        f"{ours}/{part}_{i}": f"{theirs}.{part}{i}" for part in ("norm", "conv") for i in (1, 2)
    }
    return {**names, f"{ours}/shortcut": f"{theirs}.conv_shortcut"}


def _resample(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}/space": f"{theirs}.resample.1", f"{ours}/time": f"{theirs}.time_conv"}


_DIT_NAMES = {
    "patch_in": "patch_embedding",
    "text_reader/text_in": "condition_embedder.text_embedder.linear_1",
    "text_reader/text_out": "condition_embedder.text_embedder.linear_2",
    "text_reader/image_in/norm_in": "condition_embedder.image_embedder.norm1",
    "text_reader/image_in/mlp_in": "condition_embedder.image_embedder.ff.net.0.proj",
    "text_reader/image_in/mlp_out": "condition_embedder.image_embedder.ff.net.2",
    "text_reader/image_in/norm_out": "condition_embedder.image_embedder.norm2",
    "time_in": "condition_embedder.time_embedder.linear_1",
    "time_out": "condition_embedder.time_embedder.linear_2",
    "time_levels": "condition_embedder.time_proj",
    "head": "proj_out",
    "blocks/mlp_in": "blocks.{}.ffn.net.0.proj",
    "blocks/mlp_out": "blocks.{}.ffn.net.2",
    "blocks/self_attention/query": "blocks.{}.attn1.to_q",
    "blocks/self_attention/key": "blocks.{}.attn1.to_k",
    "blocks/self_attention/value": "blocks.{}.attn1.to_v",
    "blocks/self_attention/out": "blocks.{}.attn1.to_out.0",
    "blocks/cross_attention/query": "blocks.{}.attn2.to_q",
    "text_reader/blocks/key": "blocks.{}.attn2.to_k",
    "text_reader/blocks/value": "blocks.{}.attn2.to_v",
    "text_reader/blocks/image_key": "blocks.{}.attn2.add_k_proj",
    "text_reader/blocks/image_value": "blocks.{}.attn2.add_v_proj",
    "blocks/cross_attention/out": "blocks.{}.attn2.to_out.0",
}
_DIT_PARAMETERS = {
    "head_modulation": "scale_shift_table",
    "blocks/modulation": "blocks.{}.scale_shift_table",
    "blocks/text_norm_scale": "blocks.{}.norm2.weight",
    "blocks/text_norm_bias": "blocks.{}.norm2.bias",
    "blocks/self_attention/query_norm": "blocks.{}.attn1.norm_q.weight",
    "blocks/self_attention/key_norm": "blocks.{}.attn1.norm_k.weight",
    "blocks/cross_attention/query_norm": "blocks.{}.attn2.norm_q.weight",
    "text_reader/blocks/key_norm": "blocks.{}.attn2.norm_k.weight",
    "text_reader/blocks/image_key_norm": "blocks.{}.attn2.norm_added_k.weight",
    "text_reader/image_in/positions": "condition_embedder.image_embedder.pos_embed",
}


def _dit_entries(config: DiTConfig) -> list[Entry]:
    heads = config.heads
    patch = Layout(
        lambda x: _CONV_3D.ours(x).reshape(-1, x.shape[0]),
        lambda x: _CONV_3D.theirs(x.reshape(*config.patch, -1, x.shape[-1])),
    )
    # Rotary pairs are neighbouring channels of a head in Wan and its two halves here.
    apart = Layout(
        lambda x: x.reshape(*x.shape[:-1], heads, -1, 2).swapaxes(-1, -2).reshape(x.shape),
        lambda x: x.reshape(*x.shape[:-1], heads, 2, -1).swapaxes(-1, -2).reshape(x.shape),
    )
    apart_linear = Layout(lambda x: apart.ours(x.T), lambda x: apart.theirs(x).T)
    entries = []
    for path, shape in _shapes(init_dit, config).items():
        module, leaf = path.rsplit("/", 1) if "/" in path else ("", path)
        rotary = path.startswith(("blocks/self_attention/query", "blocks/self_attention/key"))
        if path in _DIT_PARAMETERS:
            name = _DIT_PARAMETERS[path]
            table = path.endswith(("modulation", "positions"))
            layout = _TABLE if table else apart if rotary else _SAME
        elif leaf == "scale":
            name, layout = f"{_DIT_NAMES[module]}.weight", _SAME
        elif leaf == "kernel":
            name = f"{_DIT_NAMES[module]}.weight"
            layout = patch if module == "patch_in" else apart_linear if rotary else _LINEAR
        else:
            name, layout = f"{_DIT_NAMES[module]}.bias", apart if rotary else _SAME
        entries.append(Entry(path, name, layout, shape))
    return entries


_TEXT_NAMES = {
    "embedding": "shared.weight",
    "norm/scale": "encoder.final_layer_norm.weight",
    "blocks/attention_norm/scale": "encoder.block.{}.layer.0.layer_norm.weight",
    "blocks/query/kernel": "encoder.block.{}.layer.0.SelfAttention.q.weight",
    "blocks/key/kernel": "encoder.block.{}.layer.0.SelfAttention.k.weight",
    "blocks/value/kernel": "encoder.block.{}.layer.0.SelfAttention.v.weight",
    "blocks/out/kernel": "encoder.block.{}.layer.0.SelfAttention.o.weight",
    "blocks/position_bias": (
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "blocks/mlp_norm/scale": "encoder.block.{}.layer.1.layer_norm.weight",
    "blocks/gate/kernel": "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight",
    "blocks/up/kernel": "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight",
    "blocks/down/kernel": "encoder.block.{}.layer.1.DenseReluDense.wo.weight",
}


def _text_entries(config: TextConfig) -> list[Entry]:
    return [
        Entry(path, _TEXT_NAMES[path], _LINEAR if path.endswith("kernel") else _SAME, shape)
        for path, shape in _shapes(init_text, config).items()
    ]


_VISION = "vision_model."
_IMAGE_NAMES = {
    "patch_in": "embeddings.patch_embedding",
    "norm_in": "pre_layrnorm",
    "norm_out": "post_layernorm",
    "blocks/attention_norm": "encoder.layers.{}.layer_norm1",
    "blocks/query": "encoder.layers.{}.self_attn.q_proj",
    "blocks/key": "encoder.layers.{}.self_attn.k_proj",
    "blocks/value": "encoder.layers.{}.self_attn.v_proj",
    "blocks/out": "encoder.layers.{}.self_attn.out_proj",
    "blocks/mlp_norm": "encoder.layers.{}.layer_norm2",
    "blocks/mlp_in": "encoder.layers.{}.mlp.fc1",
    "blocks/mlp_out": "encoder.layers.{}.mlp.fc2",
}


def _image_entries(config: ImageConfig) -> list[Entry]:
    patch = Layout(
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(config.patch, config.patch, 3, -1).transpose(3, 2, 0, 1),
    )
    entries = []
    for path, shape in _shapes(init_image, config).items():
        module, _, leaf = path.rpartition("/")
        layout = _SAME
        if not module:
            name = {"class": "class_embedding", "positions": "position_embedding.weight"}[leaf]
            name = f"embeddings.{name}"
        else:
            name = f"{_IMAGE_NAMES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
            if leaf == "kernel":
                layout = patch if module == "patch_in" else _LINEAR
        entries.append(Entry(path, _VISION + name, layout, shape))
    return entries
