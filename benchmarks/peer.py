"""The side of diffusers in `benchmarks.against_diffusers`, in a process of its own: no jax."""

import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from benchmarks.turns import MATMUL, serve


def make_calls(
    kind: str, config: dict[str, Any], shape: list[int], words: int, steps: int, side: int
) -> dict[str, Callable[[], Any]]:
    """Calls of one row, by name.

    Args:
      kind: as `benchmarks.against_diffusers` names rows.
      config: of the network, as its own config.json has it.
      shape: of what goes in, channels second, or of the token ids.
      words: tokens of the prompt.
      steps: of the sampler.
      side: of the matrices that are multiplied.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    square = torch.ones(side, side)
    row = {
        "dit": make_dit,
        "vae": make_vae,
        "text": make_text,
        "sampling": make_sampling,
    }[kind.split()[0]]
    calls = row(kind, config, shape, words, steps)
    return {MATMUL: lambda: [square @ square for _ in range(3)], **calls}


def make_dit(kind: str, config: dict, shape: list[int], words: int, _: int) -> dict[str, Callable]:
    model = WanTransformer3DModel.from_config(config)
    x, text = torch.randn(shape), torch.randn(shape[0], words, config["text_dim"])
    t = torch.full(shape[:1], 500)

    @torch.inference_mode()
    def forward():
        return model(x, t, text, return_dict=False)[0]

    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def train():
        optimizer.zero_grad()
        loss = torch.mean((model(x, t, text, return_dict=False)[0] - x) ** 2)
        loss.backward()
        optimizer.step()

    return {"work": train if kind == "dit train" else forward}


def make_vae(kind: str, config: dict, shape: list[int], *_: int) -> dict[str, Callable]:
    model = AutoencoderKLWan.from_config(config).eval()
    x = torch.randn(shape)

    @torch.inference_mode()
    def run():
        if kind.startswith("vae encode"):
            return model.encode(x).latent_dist.mode()
        return model.decode(x).sample

    return {"work": run}


def make_text(_kind: str, config: dict, shape: list[int], *_: int) -> dict[str, Callable]:
    model = UMT5EncoderModel(UMT5Config(**config)).eval()
    tokens = torch.randint(1, config["vocab_size"], shape)
    mask = torch.ones_like(tokens)

    @torch.inference_mode()
    def run():
        return model(tokens, mask).last_hidden_state

    return {"work": run}


def make_sampling(
    _: str, config: dict, shape: list[int], words: int, steps: int
) -> dict[str, Callable]:
    model = WanTransformer3DModel.from_config(config).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(None, None, None, scheduler, model)
    pipeline.set_progress_bar_config(disable=True)
    x, texts = torch.randn(shape), torch.randn(2, 1, words, config["text_dim"])
    t = torch.full(shape[:1], 500)

    def sample():
        return pipeline(
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            num_frames=1 + 4 * (shape[2] - 1),
            height=8 * shape[3],
            width=8 * shape[4],
            num_inference_steps=steps,
            guidance_scale=4.5,
            output_type="latent",
        )

    @torch.inference_mode()
    def bare():
        for _ in range(steps):
            for text in texts:
                model(x, t, text, return_dict=False)

    return {"work": sample, "bare": bare}


if __name__ == "__main__":
    serve(make_calls)
