"""Writes golden/: what PyTorch diffusers says of open weights, for tests that do without torch.

Needs torch, diffusers and transformers, which nothing else here does. The files in the repository
were made with diffusers 0.42, transformers 5.24, torch 2.13:

    python -m tests.weights.make_golden

`pipeline/` is a folder that a tiny random WanPipeline saved, float16, its transformer in several
files; `pipeline.npz` holds what it makes in float32: token ids, text features, latents and frames
from given noise, channels last. `vae_2.2/` is a VAE as of Wan 2.2: with it in place of its own the
pipeline is one of TI2V 5B's kind, and `ti2v.npz` what that makes of a prompt, and of an image and a
prompt. `experts.npz` is what the pipeline makes with a second transformer, for low noise: its own
with each tensor turned round. `image/` is what a tiny WanImageToVideoPipeline has besides, or in
place of, that of `pipeline/`, `image.npz` what goes into it and what it makes. `unipc.npz` holds
levels and results of diffusers' UniPC scheduler. `layouts.json` holds the names and shapes of the
tensors of the published models.
"""

import json
import shutil

import numpy as np
import torch
from diffusers import WanPipeline

from tests.weights.published_layouts import list_layouts
from tests.weights.run_pipelines import draw_images, run, run_image, run_image_transformer
from tests.weights.tiny_pipelines import (
    EXPERTS,
    FOLDER,
    animating,
    make_experts,
    make_image_pipeline,
    make_pipeline,
    make_scheduler,
    make_ti2v,
    save_pipeline,
    turned_round,
)

TI2V_SIZE = (64, 32)
# Shift and steps of the schedules that are compared.
SCHEDULES = ((5.0, 20), (3.0, 50), (1.0, 7), (8.0, 2), (5.0, 1))


def in_bytes(video: np.ndarray) -> np.ndarray:
    return np.uint8(np.round(video * 255))


def made(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """What a run made, in little space; token ids and text features are those of the first."""
    latents, video = arrays["latents"], in_bytes(arrays["video"])
    return {f"{name}/latents": latents, f"{name}/video": video}


def write_image() -> None:
    pipeline = make_image_pipeline()
    arrays = run_image(pipeline, draw_images(1, 0))
    arrays["video"] = in_bytes(arrays["video"])
    arrays |= run_image_transformer(pipeline.transformer)
    np.savez_compressed(FOLDER / "image.npz", **arrays)
    pipeline.to(torch.float16).save_pretrained(FOLDER / "image")
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):  # those of pipeline/
        shutil.rmtree(FOLDER / "image" / name)


def write_ti2v() -> None:
    pipeline, image = make_ti2v(), draw_images(1, 0, TI2V_SIZE)[0]
    by_text = run(pipeline, size=TI2V_SIZE)
    by_image = run(animating(pipeline), size=TI2V_SIZE, image=image)
    arrays = {**made(by_text, "text"), **made(by_image, "image")}
    np.savez_compressed(FOLDER / "ti2v.npz", noise=by_text["noise"], image=image, **arrays)
    pipeline.vae.half().save_pretrained(FOLDER / "vae_2.2")


def write_experts(tiny: WanPipeline) -> None:
    pipeline = make_experts(turned_round(tiny.transformer))
    arrays = run(pipeline, guidance=EXPERTS["guidance"])
    np.savez_compressed(FOLDER / "experts.npz", noise=arrays["noise"], **made(arrays, "text"))


def write_schedules() -> None:
    arrays = {}
    noise = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    for shift, steps in SCHEDULES:
        scheduler = make_scheduler(shift)
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


def write_layouts() -> None:
    (FOLDER / "layouts.json").write_text(json.dumps(list_layouts(), indent=0) + "\n")


if __name__ == "__main__":
    tiny = make_pipeline()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    arrays = run(tiny)
    arrays["video"] = in_bytes(arrays["video"])
    np.savez_compressed(FOLDER / "pipeline.npz", **arrays)
    save_pipeline(tiny, FOLDER / "pipeline")
    write_image()
    write_ti2v()
    write_experts(tiny)
    write_schedules()
    write_layouts()
