"""Configuration files of a diffusers pipeline for models of ours: what `wan_config` reads, written.

What they do not say is as diffusers has it by default, and that is how the networks here are.
"""

from collections.abc import Sequence
from typing import Any

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig

# Of the library that they are checked with.
_VERSION = {"_diffusers_version": "0.42.0"}
# By what the transformer predicts: how diffusers' schedulers call it.
PREDICTIONS = {"velocity": "flow_prediction", "clean": "sample"}


def pipeline_index() -> dict[str, Any]:
    """model_index.json: the classes of a text-to-video pipeline's parts."""
    return {
        "_class_name": "WanPipeline",
        **_VERSION,
        "boundary_ratio": None,
        "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def dit_config(config: DiTConfig) -> dict[str, Any]:
    """transformer/config.json."""
    return {
        "_class_name": "WanTransformer3DModel",
        **_VERSION,
        "added_kv_proj_dim": None,
        "attention_head_dim": config.head_width,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": config.mlp_width,
        "freq_dim": config.time_features,
        "image_dim": None,
        "in_channels": config.latent_channels,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "out_channels": config.latent_channels,
        "patch_size": list(config.patch),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_width,
    }


def vae_config(config: VAEConfig, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """vae/config.json, with mean and deviation of each channel of the latents."""
    pixels = 3 * config.patch**2
    return {
        "_class_name": "AutoencoderKLWan",
        **_VERSION,
        "attn_scales": [],
        "base_dim": config.encoder_width,
        "decoder_base_dim": config.decoder_width,
        "dim_mult": list(config.multipliers),
        "dropout": 0.0,
        "in_channels": pixels,
        "is_residual": config.shortcuts,
        "latents_mean": list(mean),
        "latents_std": list(std),
        "num_res_blocks": config.blocks,
        "out_channels": pixels,
        "patch_size": None if config.patch == 1 else config.patch,
        "scale_factor_spatial": config.spatial_stride,
        "scale_factor_temporal": config.temporal_stride,
        "temperal_downsample": list(config.temporal),
        "z_dim": config.latent_channels,
    }


def text_config(config: TextConfig) -> dict[str, Any]:
    """text_encoder/config.json of transformers."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "d_ff": config.mlp_width,
        "d_kv": config.head_width,
        "d_model": config.width,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "dtype": "float32",  # unless told otherwise, as diffusers loads the rest
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "model_type": "umt5",
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.buckets,
        "vocab_size": config.vocabulary,
    }


def scheduler_config(shift: float, prediction: str) -> dict[str, Any]:
    """scheduler/scheduler_config.json: UniPC on the levels of a flow.

    Args:
      shift: of the schedule, for every size.
      prediction: of the transformer, see `DiTConfig`.
    """
    return {
        "_class_name": "UniPCMultistepScheduler",
        **_VERSION,
        "disable_corrector": [],
        "final_sigmas_type": "zero",
        "flow_shift": shift,
        "lower_order_final": True,
        "num_train_timesteps": 1000,
        "predict_x0": True,
        "prediction_type": PREDICTIONS[prediction],
        "solver_order": 2,
        "solver_type": "bh2",
        "thresholding": False,
        "use_flow_sigmas": True,
    }
