"""Names and shapes of the tensors of the published models, from networks without numbers."""

import re
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel


def layout(model: torch.nn.Module) -> dict[str, list]:
    """Tensors by name: shape; blocks, which are all alike, once as "{}" with their number."""
    shapes, counts = {}, {}
    prefix = "vision_model." if isinstance(model, CLIPVisionModel) else ""  # of published files
    for name, tensor in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # a second name that files do not hold
            continue
        pattern = prefix + re.sub(r"^((?:encoder\.)?(?:blocks?|layers))\.\d+\.", r"\1.{}.", name)
        counts[pattern] = counts.get(pattern, 0) + 1
        assert shapes.setdefault(pattern, list(tensor.shape)) == list(tensor.shape)
    return {name: [shape, counts[name]] for name, shape in shapes.items()}


def list_layouts() -> dict[str, dict[str, Any]]:
    """Each model's configuration and tensors, by a short name."""
    sizes = {
        "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
        "5b": {
            **{"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
            **{"in_channels": 48, "out_channels": 48},
        },
    }
    # That of I2V A14B sees images as channels only; that of FLF2V has a first and a last one.
    channels = {**sizes["14b"], "in_channels": 36}
    reader = {**channels, "image_dim": 1280, "added_kv_proj_dim": 5120}
    sizes["i2v-a14b"] = channels
    sizes["i2v-14b"] = reader
    sizes["flf2v-14b"] = {**reader, "pos_embed_seq_len": 514}
    text = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    vision = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    parts = {}
    with torch.device("meta"):
        for name, size in sizes.items():
            model = WanTransformer3DModel(**size)
            parts[name] = {"config": dict(model.config), "tensors": layout(model)}
        vae, encoder, image = AutoencoderKLWan(), UMT5EncoderModel(text), CLIPVisionModel(vision)
        vae_22 = AutoencoderKLWan(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            is_residual=True,
            patch_size=2,
            in_channels=12,
            out_channels=12,
            scale_factor_spatial=16,
            # Places for the published numbers, which have no part in names and shapes.
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        )
    parts["vae"] = {"config": dict(vae.config), "tensors": layout(vae)}
    parts["vae_2.2"] = {"config": dict(vae_22.config), "tensors": layout(vae_22)}
    parts["text"] = {"config": text.to_dict(), "tensors": layout(encoder)}
    parts["image"] = {"config": vision.to_dict(), "tensors": layout(image)}
    for part in parts.values():
        part["config"] = {k: v for k, v in part["config"].items() if k != "_name_or_path"}
    return parts
