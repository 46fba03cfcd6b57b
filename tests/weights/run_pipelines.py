"""What a pipeline of diffusers makes of a prompt, images and noise: what tests compare.

All of it float32 with channels last; needs torch.
"""

import numpy as np
import PIL.Image
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel

PROMPT = "A red circle moves &amp; turns  right."
SIZE, FRAMES, STEPS, GUIDANCE = (48, 32), 9, 20, 5.0


def draw_images(count: int, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Images uint8 [n, H, W, 3] of a (width, height), with large and small things in them."""
    random, (width, height) = np.random.default_rng(seed), size
    coarse = random.integers(0, 200, (count, height // 8, width // 8, 3))
    fine = random.integers(0, 56, (count, height, width, 3))
    return np.uint8(coarse.repeat(8, 1).repeat(8, 2) + fine)


def draw_noise(pipeline: WanPipeline, seed: int, size: tuple[int, int]) -> np.ndarray:
    """[B, T, h, w, C] of a video of `size`."""
    stride = pipeline.vae_scale_factor_spatial
    shape = (1, 1 + FRAMES // 4, size[1] // stride, size[0] // stride, 4)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@torch.no_grad()
def run_image(
    pipeline: WanImageToVideoPipeline,
    images: np.ndarray,
    seed: int = 0,
    *,
    guidance: float = GUIDANCE,
) -> dict[str, np.ndarray]:
    """What it makes of one image, or of the first and the last, as `run` does."""
    noise = draw_noise(pipeline, seed, SIZE)
    first = torch.from_numpy(noise).movedim(-1, 1).contiguous()
    pictures = [PIL.Image.fromarray(image) for image in images]
    options = {
        "image": pictures[0],
        "last_image": pictures[1] if len(pictures) > 1 else None,
        "prompt": PROMPT,
        "height": SIZE[1],
        "width": SIZE[0],
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": guidance,
        "latents": first,
    }
    pipeline.set_progress_bar_config(disable=True)
    arrays = {"noise": noise, "images": images}
    if pipeline.image_encoder is not None:
        pixels = pipeline.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        seen = pipeline.image_encoder(pixels, output_hidden_states=True)
        arrays["pixels"] = pixels.movedim(1, -1).numpy()
        arrays["tokens"] = seen.hidden_states[-2].numpy()
        arrays["summary"] = seen.pooler_output.numpy()
    latents = pipeline(**options, output_type="latent").frames
    arrays["latents"] = latents.movedim(1, -1).numpy()
    arrays["video"] = np.float32(pipeline(**options, output_type="np").frames)
    return arrays


@torch.no_grad()
def run_image_transformer(model: WanTransformer3DModel) -> dict[str, np.ndarray]:
    """Inputs and output of a transformer of `make_image_pipeline("clip")` alone."""
    random = torch.Generator().manual_seed(1)
    x, text, image = (
        torch.randn(shape, generator=random)
        for shape in ((2, 12, 3, 4, 6), (2, 512, 12), (2, 5, 16))
    )
    text[:, 20:] = 0
    y = model(x, torch.tensor([300.0, 950.0]), text, image).sample
    arrays = {"x": x.movedim(1, -1), "text": text[:, :20], "image": image, "y": y.movedim(1, -1)}
    return {f"dit/{name}": value.numpy() for name, value in arrays.items()}


@torch.no_grad()
def lay_images(pipeline: WanImageToVideoPipeline, images: np.ndarray) -> np.ndarray:
    """What its transformer sees of images beside the noise, [1, T, h, w, mask + C]."""
    pixels = torch.from_numpy(np.float32(images) / 127.5 - 1).movedim(-1, 1)[:, None]
    options = {"height": SIZE[1], "width": SIZE[0], "num_frames": FRAMES, "dtype": torch.float32}
    last = pixels[1] if len(images) > 1 else None
    _, channels = pipeline.prepare_latents(
        pixels[0], 1, 4, **options, device="cpu", last_image=last
    )
    return channels.movedim(1, -1).numpy()


@torch.no_grad()
def run(
    pipeline: WanPipeline,
    seed: int = 0,
    *,
    size: tuple[int, int] = SIZE,
    guidance: tuple[float, ...] = (GUIDANCE,),
    image: np.ndarray | None = None,
    negative: str | None = None,
) -> dict[str, np.ndarray]:
    """What it makes of PROMPT and noise: all that a test compares, float32, channels last."""
    noise = draw_noise(pipeline, seed, size)
    first = torch.from_numpy(noise).movedim(-1, 1).contiguous()
    told = pipeline.encode_prompt(PROMPT, negative, max_sequence_length=512)
    ids = pipeline.tokenizer(["A red circle moves & turns right."], max_length=512, padding=False)
    options = {
        "prompt_embeds": told[0],
        "negative_prompt_embeds": told[1],
        "height": size[1],
        "width": size[0],
        "num_frames": FRAMES,
        "num_inference_steps": STEPS,
        **dict(zip(("guidance_scale", "guidance_scale_2"), guidance)),
        **({} if image is None else {"image": PIL.Image.fromarray(image)}),
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
