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
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import tokenizers
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.models.make_golden import randomise

FOLDER = pathlib.Path(__file__).parent / "golden"
TOKENIZER = FOLDER / "pipeline" / "tokenizer" / "tokenizer.json"
PROMPT = "A red circle moves &amp; turns  right."
SIZE, FRAMES, STEPS, GUIDANCE = (48, 32), 9, 20, 5.0
TI2V_SIZE = (64, 32)
EXPERTS = {"shift": 12.0, "boundary_ratio": 0.875, "guidance": (4.0, 3.0)}  # of Wan 2.2 T2V A14B
# Shift and steps of the schedules that are compared.
SCHEDULES = ((5.0, 20), (3.0, 50), (1.0, 7), (8.0, 2), (5.0, 1))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tiny one of UMT5's kind: unigram pieces, padding 0, end 1, which its template adds.

    The one in golden/ is kept: training puts pieces that are equally likely in any order.
    """
    if TOKENIZER.is_file():
        return wrapped(tokenizers.Tokenizer.from_file(str(TOKENIZER)))
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
    return wrapped(model)


def wrapped(model: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_transformer(seed: int, **image: int) -> WanTransformer3DModel:
    """A tiny one; `image` is what it takes of images."""
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 12,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 2,
        "rope_max_seq_len": 16,
    }
    return randomise(WanTransformer3DModel(**{**sizes, **image}), seed)


def make_vae(seed: int, *, of_22: bool = False) -> AutoencoderKLWan:
    """Of 2.1's kind, or of 2.2's: shortcuts, pixel patches, a wider decoder."""
    more = {
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "decoder_base_dim": 3,
        "scale_factor_spatial": 16,
    }
    vae = AutoencoderKLWan(
        base_dim=2,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        z_dim=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.2, 0.8, 1.0],
        **(more if of_22 else {}),
    )
    randomise(vae, seed)
    # The decoder's output is clipped to [-1, 1]; small values show all of it.
    vae.decoder.conv_out.weight.data = (vae.decoder.conv_out.weight / 4).half().float()
    return vae


def make_scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )


def make_pipeline(seed: int = 0) -> WanPipeline:
    """A tiny random pipeline in float32."""
    text = UMT5Config(
        vocab_size=112, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0
    )
    return WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=randomise(UMT5EncoderModel(text), seed + 1),
        transformer=make_transformer(seed + 2),
        vae=make_vae(seed),
        scheduler=make_scheduler(5.0),
    )


def make_ti2v(seed: int = 0) -> WanPipeline:
    """A tiny random pipeline of TI2V 5B's kind."""
    parts = make_pipeline(seed).components
    vae = make_vae(seed, of_22=True)
    return WanPipeline(**{**parts, "vae": vae, "expand_timesteps": True})


def animating(pipeline: WanPipeline) -> WanImageToVideoPipeline:
    """The same networks, given an image."""
    return WanImageToVideoPipeline(**pipeline.components, expand_timesteps=True)


def make_experts(second: WanTransformer3DModel, seed: int = 0) -> WanPipeline:
    """A tiny random pipeline with a second transformer for low noise."""
    parts = make_pipeline(seed).components
    more = {"transformer_2": second, "scheduler": make_scheduler(EXPERTS["shift"])}
    return WanPipeline(**{**parts, **more, "boundary_ratio": EXPERTS["boundary_ratio"]})


def turned_round(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """One with each tensor reversed along its first axis."""
    other = WanTransformer3DModel.from_config(transformer.config)
    other.load_state_dict({k: x.flip(0) for k, x in transformer.state_dict().items()})
    return other.eval()


def draw_image(seed: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3], coarse."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return np.uint8(np.kron(coarse, np.ones((8, 8, 1))))


def make_image_pipeline(kind: str = "clip", seed: int = 0) -> WanImageToVideoPipeline:
    """One that animates images, the rest of it as `make_pipeline` makes it.

    Args:
      kind: what the transformer sees besides channels: "clip" image tokens, "both" those of a first
        and a last frame, "none". "experts" are two transformers of that.
      seed: of the weights.
    """
    pipeline = make_pipeline(seed)
    image = {"clip": {}, "both": {"pos_embed_seq_len": 10}}.get(kind)
    two = kind == "experts"
    reader = None if image is None else {"image_dim": 16, "added_kv_proj_dim": 24, **image}
    sizes = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    return WanImageToVideoPipeline(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
        transformer=make_transformer(seed + 2, in_channels=12, **(reader or {})),
        transformer_2=make_transformer(seed + 4, in_channels=12) if two else None,
        boundary_ratio=0.9 if two else None,
        image_encoder=reader and randomise(CLIPVisionModel(sizes), seed + 3),
        image_processor=reader
        and CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
    )


def draw_images(count: int, seed: int) -> np.ndarray:
    """Images uint8 [n, H, W, 3] with large and small things in them."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (count, SIZE[1] // 8, SIZE[0] // 8, 3))
    fine = random.integers(0, 56, (count, SIZE[1], SIZE[0], 3))
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


def save_pipeline(pipeline: WanPipeline, folder: pathlib.Path) -> None:
    """Writes a diffusers folder in float16; its transformer in several files with an index."""
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    pipeline.to(torch.float32)


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
    pipeline, image = make_ti2v(), draw_image(0, TI2V_SIZE)
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
    (FOLDER / "layouts.json").write_text(json.dumps(parts, indent=0) + "\n")


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
