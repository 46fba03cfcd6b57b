"""Configuration files of open Wan models, diffusers' and Wan's own, as the dataclasses here.

A value that these networks do not have is refused and never passed over: it would be another model.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.tensor_files import read_json

REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
IMAGE_REPOSITORY = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
REPOSITORY_TI2V = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
INSTEAD = f"give a text-to-video model such as {REPOSITORY}"
_IMAGE_INSTEAD = f"take both folders from {IMAGE_REPOSITORY}"
# Beyond any size of a network; what is larger is no configuration but a mistake.
_LARGEST = 2**20

# What the transformers and the text encoders have in common, by their names in either layout.
_FIXED_DIT = {
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "eps": 1e-6,
}
_FIXED_ORIGINAL = {"eps": 1e-6, "text_len": 512}
# Of text, of images beside the noise, and of text with an image as a first frame that is held.
_ORIGINAL_TYPES = ("t2v", "i2v", "flf2v", "ti2v")
_FIXED_VAE = {"attn_scales": []}
_FIXED_TEXT = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
_FIXED_IMAGE = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
}
_FIXED_PROCESSOR = {
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
    **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True),
}


def read_dit_config(file: pathlib.Path) -> DiTConfig:
    """Sizes of a transformer, from the config.json of a WanTransformer3DModel or a WanModel.

    Raises:
      FileNotFoundError, ValueError: no such file, or not of a model of text or image to video.
    """
    config = read_json(file)
    kind = config.get("_class_name")
    image = {}
    if kind == "WanModel":
        check_fixed(config, _FIXED_ORIGINAL, file)
        if config.get("model_type") not in _ORIGINAL_TYPES:
            raise ValueError(
                f"{file}: model_type is {config.get('model_type')!r}, and the networks here are "
                f"of {', '.join(_ORIGINAL_TYPES)}; {INSTEAD}"
            )
        names = ("dim", "num_layers", "num_heads", "ffn_dim", "in_dim", "out_dim", "freq_dim")
        width, layers, heads, mlp, channels, out, time = (_count(config, n, file) for n in names)
        patch, text_width = (1, 2, 2), 4096
    elif kind == "WanTransformer3DModel":
        check_fixed(config, _FIXED_DIT, file)
        names = ("attention_head_dim", "num_layers", "num_attention_heads", "ffn_dim")
        head, layers, heads, mlp = (_count(config, n, file) for n in names)
        names = ("in_channels", "out_channels", "freq_dim", "text_dim")
        channels, out, time, text_width = (_count(config, n, file) for n in names)
        width, patch = head * heads, _tuple(config, "patch_size", file)
        image = _read_image_reader(config, width, file)
    else:
        raise ValueError(
            f"{file} is of a {kind}, and only a WanTransformer3DModel or WanModel is read; "
            f"{INSTEAD}"
        )
    if channels < out:
        raise ValueError(f"{file}: {channels} channels go in and {out} come out; {INSTEAD}")
    return _make(
        DiTConfig,
        file,
        width,
        layers,
        heads,
        mlp,
        out,
        patch,
        text_width,
        time,
        "velocity",
        channels - out,
        *image,
    )


def with_image_reader(dit: DiTConfig, shapes: Mapping[str, tuple[int, ...]]) -> DiTConfig:
    """Sizes of a transformer in Wan's own layout, whose config.json does not say what it reads.

    Args:
      dit: of `read_dit_config`.
      shapes: of its tensors by diffusers' names.
    """
    name = "condition_embedder.image_embedder"
    norm, positions = (shapes.get(f"{name}.{leaf}", ()) for leaf in ("norm1.weight", "pos_embed"))
    if len(norm) != 1 or not dit.image_channels:
        return dit
    count = positions[1] if len(positions) == 3 else 0
    return dataclasses.replace(dit, image_width=norm[0], image_positions=count)


def _read_image_reader(config: dict[str, Any], width: int, file: pathlib.Path) -> tuple[int, int]:
    """Width of image tokens, and how many have positions, as diffusers says it."""
    if config.get("image_dim") is None:
        fixed, image_width = None, 0
    else:
        fixed, image_width = width, _count(config, "image_dim", file)
    if config.get("added_kv_proj_dim") != fixed:
        raise ValueError(
            f"{file}: added_kv_proj_dim is {config.get('added_kv_proj_dim')!r}, and with "
            f"image_dim {config.get('image_dim')!r} the networks here have {fixed!r}; {INSTEAD}"
        )
    positions = config.get("pos_embed_seq_len")
    return image_width, 0 if positions is None else _count(config, "pos_embed_seq_len", file)


def read_vae_config(file: pathlib.Path) -> tuple[VAEConfig, list[float], list[float]]:
    """Sizes of an AutoencoderKLWan, and mean and deviation of each channel of its latents.

    Raises:
      FileNotFoundError, ValueError: no such file, or another kind of VAE.
    """
    config = read_json(file)
    check_class(config, "AutoencoderKLWan", file)
    check_fixed(config, _FIXED_VAE, file)
    channels = _count(config, "z_dim", file)
    patch = 1 if config.get("patch_size") is None else _count(config, "patch_size", file)
    width = _count(config, "base_dim", file)
    decoder = config.get("decoder_base_dim")
    temporal = _tuple(config, "temperal_downsample", file)
    if not all(isinstance(value, bool) for value in temporal):
        raise ValueError(f"{file}: temperal_downsample {list(temporal)} must be true or false each")
    shortcuts = config.get("is_residual", False)
    if not isinstance(shortcuts, bool):
        raise ValueError(f"{file}: is_residual is {shortcuts!r}, and must be true or false")
    vae = _make(
        VAEConfig,
        file,
        width,
        width if decoder is None else _count(config, "decoder_base_dim", file),
        _tuple(config, "dim_mult", file),
        _count(config, "num_res_blocks", file),
        temporal,
        channels,
        patch,
        shortcuts,
    )
    mean, std = (_numbers(config, name, channels, file) for name in ("latents_mean", "latents_std"))
    if min(std) <= 0:
        raise ValueError(f"{file}: latents_std {min(std)} must be positive; download it again")
    return vae, mean, std


def read_text_config(file: pathlib.Path) -> TextConfig:
    """Sizes of a UMT5 encoder; raises as the others do."""
    config = read_json(file)
    check_fixed(config, _FIXED_TEXT, file, needed=("model_type",))
    names = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    more = ("relative_attention_num_buckets", "relative_attention_max_distance")
    return _make(TextConfig, file, *(_count(config, name, file) for name in (*names, *more)))


def read_image_config(folder: pathlib.Path) -> ImageConfig:
    """Sizes of a CLIPVisionModel and the pixels it takes.

    Args:
      folder: of the model, with `image_encoder/` and `image_processor/`.

    Raises:
      FileNotFoundError, ValueError: a file is missing, or of another network or preparation.
    """
    file = folder / "image_encoder" / "config.json"
    config = read_json(file)
    check_fixed(config, _FIXED_IMAGE, file, needed=("model_type", "hidden_act"))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = [_count(config, name, file) for name in (*names, "image_size", "patch_size")]
    side = sizes[-2]
    file = folder / "image_processor" / "preprocessor_config.json"
    config = read_json(file)
    check_fixed(config, _FIXED_PROCESSOR, file)
    crop = {"height": side, "width": side}
    for name, value in (("size", {"shortest_edge": side}), ("crop_size", crop)):
        # Older files hold the one number alone.
        if config.get(name) not in (value, side):
            raise ValueError(
                f"{file}: {name} is {config.get(name)!r}, and the image encoder beside it takes "
                f"{value!r}; {_IMAGE_INSTEAD}"
            )
    colours = (tuple(_numbers(config, f"image_{name}", 3, file)) for name in ("mean", "std"))
    return _make(ImageConfig, file, *sizes, *colours)


def check_class(config: dict[str, Any], kind: str, file: pathlib.Path) -> None:
    """Raises ValueError unless a file says that it is of a class."""
    if config.get("_class_name") != kind:
        raise ValueError(
            f"{file} is of a {config.get('_class_name')}, and only a {kind} is read; {INSTEAD}"
        )


def check_fixed(
    config: dict[str, Any],
    fixed: dict[str, Any],
    file: pathlib.Path,
    *,
    needed: tuple[str, ...] = (),
) -> None:
    """Raises ValueError where a file says otherwise than `fixed`.

    What it leaves out is as there, but for what is `needed`.
    """
    for name, value in fixed.items():
        found = config.get(name, None if name in needed else value)
        if found != value:
            raise ValueError(
                f"{file}: {name} is {found!r}, and the networks here have {value!r}; {INSTEAD}"
            )


def _count(config: dict[str, Any], name: str, file: pathlib.Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ValueError(
            f"{file}: {name} is {value!r}, and must be a number of 1 to {_LARGEST}; download it "
            "again"
        )
    return value


def _tuple(config: dict[str, Any], name: str, file: pathlib.Path) -> tuple:
    value = config.get(name)
    if not isinstance(value, list) or len(value) > 8:
        raise ValueError(
            f"{file}: {name} is {value!r}, and must be a short list; download it again"
        )
    return tuple(value)


def _numbers(config: dict[str, Any], name: str, length: int, file: pathlib.Path) -> list[float]:
    value = config.get(name)
    fits = isinstance(value, list) and len(value) == length
    if not fits or not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        raise ValueError(
            f"{file}: {name} is {value!r}, and must be {length} numbers; download it again"
        )
    return [float(v) for v in value]


def _make(cls: type, file: pathlib.Path, *values: Any) -> Any:
    try:
        return cls(*values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; download it again") from error
