"""Writes golden/: what PyTorch diffusers says of open weights, for tests that do without torch.

Needs torch, diffusers and transformers, which nothing else here does. The files in the repository
were made with diffusers 0.42, transformers 5.24, torch 2.13:

    python -m tests.weights.make_golden

`pipeline/` is a folder that a tiny random WanPipeline saved, float16, its transformer in several
files; `pipeline.npz` holds what it makes in float32: token ids, text features, latents and frames
from given noise, channels last. `unipc.npz` holds levels and results of diffusers' UniPC scheduler.
`layouts.json` holds the names and shapes of the tensors of the published models.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import tokenizers
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from tests.models.make_golden import randomise

FOLDER = pathlib.Path(__file__).parent / "golden"
PROMPT = "A red circle moves &amp; turns  right."
SIZE, FRAMES, STEPS, GUIDANCE = (48, 32), 9, 20, 5.0
LATENTS = (1, 3, 4, 6, 4)  # [B, T, h, w, C]
# Shift and steps of the schedules that are compared.
SCHEDULES = ((5.0, 20), (3.0, 50), (1.0, 7), (8.0, 2), (5.0, 1))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tiny one of UMT5's kind: unigram pieces, padding 0, end 1, which its template adds."""
    model = tokenizers.Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    model.train_from_iterator(["a red circle moves & turns right", "A blue square."] * 4, trainer)
    model.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_pipeline(seed: int = 0) -> WanPipeline:
    """A tiny random pipeline in float32."""
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        rope_max_seq_len=16,
    )
    vae = AutoencoderKLWan(
        base_dim=2,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        z_dim=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.2, 0.8, 1.0],
    )
    text = UMT5Config(
        vocab_size=112, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0
    )
    randomise(vae, seed)
    # The decoder's output is clipped to [-1, 1]; small values show all of it.
    vae.decoder.conv_out.weight.data = (vae.decoder.conv_out.weight / 4).half().float()
    return WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=randomise(UMT5EncoderModel(text), seed + 1),
        transformer=randomise(transformer, seed + 2),
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
        ),
    )


@torch.no_grad()
def run(pipeline: WanPipeline, seed: int = 0) -> dict[str, np.ndarray]:
    """What it makes of PROMPT and noise: all that a test compares, float32, channels last."""
    noise = np.random.default_rng(seed).normal(size=LATENTS).astype(np.float32)
    first = torch.from_numpy(noise).movedim(-1, 1).contiguous()
    told = pipeline.encode_prompt(PROMPT, max_sequence_length=512)
    ids = pipeline.tokenizer(["A red circle moves & turns right."], max_length=512, padding=False)
    options = {
        "prompt_embeds": told[0],
        "negative_prompt_embeds": told[1],
        "height": SIZE[1],
        "width": SIZE[0],
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
    }
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(**options, latents=first, output_type="latent").frames
    video = pipeline(**options, latents=first, output_type="np").frames
    text = torch.cat(told)
    assert not text[:, 40:].any()
    return {
        "noise": noise,
        "ids": np.int32(ids["input_ids"][0]),
        "text": text[:, :40].numpy(),
        "latents": latents.movedim(1, -1).numpy(),
        "video": np.float32(video),  # [B, F, H, W, 3] in [0, 1]
    }


def save_pipeline(pipeline: WanPipeline, folder: pathlib.Path) -> None:
    """Writes a diffusers folder in float16; its transformer in several files with an index."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    pipeline.to(torch.float32)


def write_schedules() -> None:
    arrays = {}
    noise = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    for shift, steps in SCHEDULES:
        scheduler = UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
        )
        scheduler.set_timesteps(steps)
        x = torch.from_numpy(noise)
        for t, level in zip(scheduler.timesteps, scheduler.sigmas):
            clean = torch.tanh(torch.roll(x, 1, 1) + 0.3 * torch.cumsum(x, 1) + level)
            x = scheduler.step((x - clean) / level, t, x).prev_sample
        name = f"{shift:g}/{steps}"
        arrays[f"levels/{name}"] = scheduler.sigmas.numpy()
        arrays[f"told/{name}"] = scheduler.timesteps.numpy()
        arrays[f"result/{name}"] = x.numpy()
    np.savez_compressed(FOLDER / "unipc.npz", noise=noise, **arrays)


def layout(model: torch.nn.Module) -> dict[str, list]:
    """Tensors by name: shape; blocks, which are all alike, once as "{}" with their number."""
    shapes, counts = {}, {}
    for name, tensor in model.state_dict().items():
        if name == "encoder.embed_tokens.weight":  # a second name that files do not hold
            continue
        pattern = re.sub(r"^((?:encoder\.)?blocks?)\.\d+\.", r"\1.{}.", name)
        counts[pattern] = counts.get(pattern, 0) + 1
        assert shapes.setdefault(pattern, list(tensor.shape)) == list(tensor.shape)
    return {name: [shape, counts[name]] for name, shape in shapes.items()}


def write_layouts() -> None:
    """Names and shapes of the published models, from their configurations."""
    sizes = {
        "1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        "14b": {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
        "5b": {
            **{"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
            **{"in_channels": 48, "out_channels": 48},
        },
    }
    text = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    parts = {}
    with torch.device("meta"):
        for name, size in sizes.items():
            model = WanTransformer3DModel(**size)
            parts[name] = {"config": dict(model.config), "tensors": layout(model)}
        vae, encoder = AutoencoderKLWan(), UMT5EncoderModel(text)
    parts["vae"] = {"config": dict(vae.config), "tensors": layout(vae)}
    parts["text"] = {"config": text.to_dict(), "tensors": layout(encoder)}
    for part in parts.values():
        part["config"] = {k: v for k, v in part["config"].items() if k != "_name_or_path"}
    (FOLDER / "layouts.json").write_text(json.dumps(parts, indent=0) + "\n")


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    tiny = make_pipeline()
    arrays = run(tiny)
    arrays["video"] = np.uint8(np.round(arrays["video"] * 255))
    np.savez_compressed(FOLDER / "pipeline.npz", **arrays)
    save_pipeline(tiny, FOLDER / "pipeline")
    write_schedules()
    write_layouts()
