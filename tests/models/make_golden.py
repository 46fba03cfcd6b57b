"""Writes golden/*.npz: small random networks of PyTorch diffusers and what they compute.

Needs torch, diffusers and transformers, which nothing else here does; the tests only read the
files. The files in the repository were made with diffusers 0.42, transformers 5.23, torch 2.13:

    python tests/models/make_golden.py

Each file holds the state dict under "weights/NAME" in float16, which the networks ran with in
float32, and inputs and outputs in float32, channels last.
"""

import pathlib

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

FOLDER = pathlib.Path(__file__).parent / "golden"


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that float16 holds, of which every tensor matters: biases and tables off zero."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        value = torch.randn(parameter.shape, generator=random)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            value = 1 + 0.3 * value
        elif name.endswith(("bias", "bias.weight")):
            value = 0.2 * value
        elif "table" in name or "shared" in name:
            value = 0.5 * value
        else:
            value = value * parameter[0].numel() ** -0.5
        parameter.data = value.half().float()
    return model.eval()


def save(name: str, model: torch.nn.Module, arrays: dict[str, torch.Tensor]) -> None:
    weights = {f"weights/{key}": x.numpy().astype("float16") for key, x in weights_of(model)}
    np.savez_compressed(
        FOLDER / f"{name}.npz", **weights, **{k: v.numpy() for k, v in arrays.items()}
    )


def weights_of(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(k, x) for k, x in model.state_dict().items() if k != "encoder.embed_tokens.weight"]


def last(x: torch.Tensor) -> torch.Tensor:
    """Channels first to channels last."""
    return x.movedim(1, -1).contiguous()


def vae() -> None:
    model = AutoencoderKLWan(
        base_dim=2,
        decoder_base_dim=4,
        z_dim=3,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
    )
    randomise(model)
    # The decoder's output is clipped to [-1, 1]; small values show all of it.
    model.decoder.conv_out.weight.data = (model.decoder.conv_out.weight / 8).half().float()
    random = torch.Generator().manual_seed(1)
    video = torch.randint(-8, 9, (1, 3, 9, 16, 32), generator=random) / 8
    latents = torch.randn(1, 3, 3, 1, 2, generator=random)
    posterior = model.encode(video).latent_dist
    frames = model.decode(latents).sample
    assert frames.abs().max() < 1
    arrays = {
        "video": video,
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "latents": latents,
        "frames": frames,
    }
    save("vae", model, {name: last(x) for name, x in arrays.items()})


def vae_with_shortcuts() -> None:
    """As of Wan 2.2; clips of several sizes and lengths, the outputs numbered as the inputs."""
    model = AutoencoderKLWan(
        base_dim=2,
        decoder_base_dim=3,
        z_dim=3,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
    )
    randomise(model)
    model.decoder.conv_out.weight.data = (model.decoder.conv_out.weight / 8).half().float()
    random = torch.Generator().manual_seed(1)
    arrays = {}
    for i, (frames, height, width) in enumerate([(1, 48, 32), (5, 16, 32), (17, 32, 16)]):
        video = torch.randint(-8, 9, (1, 3, frames, height, width), generator=random) / 8
        latents = torch.randn(1, 3, 1 + frames // 4, height // 16, width // 16, generator=random)
        posterior = model.encode(video).latent_dist
        frames = model.decode(latents).sample
        assert frames.abs().max() < 1
        arrays |= {f"video_{i}": video, f"latents_{i}": latents, f"frames_{i}": frames}
        arrays |= {f"mean_{i}": posterior.mean, f"logvar_{i}": posterior.logvar}
    save("vae_with_shortcuts", model, {name: last(x) for name, x in arrays.items()})


def dit() -> None:
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=3,
        out_channels=3,
        text_dim=12,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        rope_max_seq_len=8,
    )
    randomise(model)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 3, 4, 6, generator=random)
    text = torch.randn(2, 5, 12, generator=random)
    text[1, 3:] = 0
    levels = torch.tensor([[0.0, 0.6, 0.95], [1.0, 0.31, 0.31]])
    per_token = levels[:, :, None].expand(2, 3, 6).reshape(2, 18)
    arrays = {
        "x": last(x),
        "text": text,
        "levels": levels,
        "of_one_level": last(model(x, 1000 * levels[:, 1], text).sample),
        "of_levels": last(model(x, 1000 * per_token, text).sample),
    }
    save("dit", model, arrays)


def text() -> None:
    config = UMT5Config(
        vocab_size=40, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0
    )
    model = randomise(UMT5EncoderModel(config))
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40, (2, 20), generator=random)
    tokens[1, 7:] = 0
    present = (tokens != 0).long()
    features = model(input_ids=tokens, attention_mask=present).last_hidden_state
    save("text", model, {"tokens": tokens.int(), "features": features * present[..., None]})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with torch.no_grad():
        vae()
        vae_with_shortcuts()
        dit()
        text()
