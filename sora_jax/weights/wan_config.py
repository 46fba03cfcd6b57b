"""Configuration files of open Wan models, diffusers' and Wan's own, as the dataclasses here.

A value that these networks do not have is refused and never passed over: it would be another model.
"""

import math
import pathlib
from typing import Any

from sora_jax.models.dit import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.tensor_files import read_json

REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
REPOSITORY_TI2V = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
_INSTEAD = f"give a text-to-video model such as {REPOSITORY}"
# Beyond any size of a network; what is larger is no configuration but a mistake.
_LARGEST = 2**20

# What the transformers and the text encoders have in common, by their names in either layout.
_FIXED_DIT = {
    "qk_norm": "rms_norm_across_heads",
    "cross_attn_norm": True,
    "eps": 1e-6,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
_FIXED_ORIGINAL = {"eps": 1e-6, "text_len": 512}
# Of text, and of text with an image as a first frame that is held: the same network.
_ORIGINAL_TYPES = ("t2v", "ti2v")
_FIXED_VAE = {"attn_scales": []}
_FIXED_TEXT = {
    "model_type": "umt5",
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
}
_FIXED_SCHEDULER = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "disable_corrector": [],
    "solver_p": None,
    "thresholding": False,
    "shift_terminal": None,
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"),
        False,
    ),
}


def read_dit_config(file: pathlib.Path) -> DiTConfig:
    """Sizes of a transformer, from the config.json of a WanTransformer3DModel or a WanModel.

    Raises:
      FileNotFoundError, ValueError: no such file, or not of a text-to-video model.
    """
    config = read_json(file)
    kind = config.get("_class_name")
    if kind == "WanModel":
        _check_fixed(config, _FIXED_ORIGINAL, file)
        if config.get("model_type") not in _ORIGINAL_TYPES:
            raise ValueError(
                f"{file}: model_type is {config.get('model_type')!r}, and the networks here are "
                f"of {' or '.join(_ORIGINAL_TYPES)}; {_INSTEAD}"
            )
        names = ("dim", "num_layers", "num_heads", "ffn_dim", "in_dim", "out_dim", "freq_dim")
        width, layers, heads, mlp, channels, out, time = (_count(config, n, file) for n in names)
        patch, text_width = (1, 2, 2), 4096
    elif kind == "WanTransformer3DModel":
        _check_fixed(config, _FIXED_DIT, file)
        names = ("attention_head_dim", "num_layers", "num_attention_heads", "ffn_dim")
        head, layers, heads, mlp = (_count(config, n, file) for n in names)
        names = ("in_channels", "out_channels", "freq_dim", "text_dim")
        channels, out, time, text_width = (_count(config, n, file) for n in names)
        width, patch = head * heads, _tuple(config, "patch_size", file)
    else:
        raise ValueError(
            f"{file} is of a {kind}, and only a WanTransformer3DModel or WanModel is read; "
            f"{_INSTEAD}"
        )
    if channels != out:
        raise ValueError(
            f"{file}: {channels} channels go in and {out} come out, so images are given beside "
            f"the noise; {_INSTEAD}"
        )
    return _make(
        DiTConfig, file, width, layers, heads, mlp, out, patch, text_width, time, "velocity"
    )


def read_vae_config(file: pathlib.Path) -> tuple[VAEConfig, list[float], list[float]]:
    """Sizes of an AutoencoderKLWan, and mean and deviation of each channel of its latents.

    Raises:
      FileNotFoundError, ValueError: no such file, or another kind of VAE.
    """
    config = read_json(file)
    _check_class(config, "AutoencoderKLWan", file)
    _check_fixed(config, _FIXED_VAE, file)
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
    _check_fixed(config, _FIXED_TEXT, file, needed=("model_type",))
    names = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")
    more = ("relative_attention_num_buckets", "relative_attention_max_distance")
    return _make(TextConfig, file, *(_count(config, name, file) for name in (*names, *more)))


def read_shift(file: pathlib.Path) -> float:
    """The shift of the schedule of diffusers' UniPC.

    Raises:
      FileNotFoundError, ValueError: no such file, or a scheduler that samples otherwise.
    """
    config = read_json(file)
    _check_class(config, "UniPCMultistepScheduler", file)
    # A flow is not what it takes unless told.
    _check_fixed(config, _FIXED_SCHEDULER, file, needed=("prediction_type", "use_flow_sigmas"))
    shift = config.get("flow_shift", 1.0)
    if type(shift) not in (int, float) or not 0 < shift < math.inf:
        raise ValueError(f"{file}: flow_shift is {shift!r}, and must be positive; 5 is Wan's own")
    return float(shift)


def _check_class(config: dict[str, Any], kind: str, file: pathlib.Path) -> None:
    if config.get("_class_name") != kind:
        raise ValueError(
            f"{file} is of a {config.get('_class_name')}, and only a {kind} is read; {_INSTEAD}"
        )


def _check_fixed(
    config: dict[str, Any],
    fixed: dict[str, Any],
    file: pathlib.Path,
    *,
    needed: tuple[str, ...] = (),
) -> None:
    """What a file leaves out is as here, but for what is `needed`."""
    for name, value in fixed.items():
        found = config.get(name, None if name in needed else value)
        if found != value:
            raise ValueError(
                f"{file}: {name} is {found!r}, and the networks here have {value!r}; {_INSTEAD}"
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
