"""Configuration files of a diffusers pipeline for models of ours: what `wan_config` reads, written.

What they do not say is as diffusers has it by default, and that is how the networks here are.
"""

from collections.abc import Sequence
from typing import Any

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig

# Of the library that they are checked with.
_VERSION = {"_diffusers_version": "0.42.0"}
# By what the transformer predicts: how diffusers' schedulers call it.
PREDICTIONS = {"velocity": "flow_prediction", "clean": "sample"}


def pipeline_index(
    dit: DiTConfig, vae: VAEConfig, image: ImageConfig | None, boundary: float | None
) -> dict[str, Any]:
    """model_index.json: the classes of a pipeline's parts, for text to video or image to video.

    Args:
      dit, vae: of the model.
      image: of its image encoder, if it has one.
      boundary: between two transformers, if it has two.
    """
    transformer, absent = ["diffusers", "WanTransformer3DModel"], [None, None]
    index = {
        "_class_name": "WanImageToVideoPipeline" if dit.image_channels else "WanPipeline",
        **_VERSION,
        "boundary_ratio": boundary,
        # Wan 2.2's VAE is that of the model which is told the level of each token.
        "expand_timesteps": vae.shortcuts,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": transformer,
        "transformer_2": absent if boundary is None else transformer,
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if dit.image_channels:
        index["image_encoder"] = ["transformers", "CLIPVisionModel"] if image else absent
        index["image_processor"] = ["transformers", "CLIPImageProcessor"] if image else absent
    return index


def dit_config(config: DiTConfig) -> dict[str, Any]:
    """transformer/config.json."""
    return {
        "_class_name": "WanTransformer3DModel",
        **_VERSION,
        "added_kv_proj_dim": config.width if config.image_width else None,
        "attention_head_dim": config.head_width,
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": config.mlp_width,
        "freq_dim": config.time_features,
        "image_dim": config.image_width or None,
        "in_channels": config.latent_channels + config.image_channels,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "out_channels": config.latent_channels,
        "patch_size": list(config.patch),
        "pos_embed_seq_len": config.image_positions or None,
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


def image_config(config: ImageConfig) -> dict[str, Any]:
    """image_encoder/config.json of transformers."""
    return {
        "architectures": ["CLIPVisionModel"],
        "dtype": "float32",  # unless told otherwise, as diffusers loads the rest
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "image_size": config.side,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.heads,
        "num_channels": 3,
        "num_hidden_layers": config.layers,
        "patch_size": config.patch,
    }


def processor_config(config: ImageConfig) -> dict[str, Any]:
    """image_processor/preprocessor_config.json: the pixels that the image encoder takes."""
    return {
        "crop_size": {"height": config.side, "width": config.side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(config.mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(config.std),
        "resample": 3,  # bicubic
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": config.side},
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
