"""Whole pipelines beside diffusers' own, in float32, in and out; where torch and diffusers are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.diffusion.conditioning import Given
from sora_jax.loading import PRETRAINED
from sora_jax.models.vae import VAE, denormalise
from sora_jax.weights.__main__ import export_pipeline, import_open
from tests.weights.test_open_parity import sample

for _library in ("torch", "diffusers", "transformers"):
    pytest.importorskip(_library)

SEED = 7  # not that of the golden files


def decode(model, latents):
    """Frames [B, F, H, W, 3] of normalised latents as numbers in [0, 1]."""
    z = denormalise(latents, model.latent_mean, model.latent_std)
    run = jax.jit(lambda params, z: VAE(model.vae_config).apply(params, z, method="decode")[0])
    frames = np.asarray(run({"params": model.params["vae"]}, z))
    return (np.clip(frames, -1, 1) + 1) / 2


def psnr(ours, theirs):
    error = np.mean((np.float64(ours) - theirs) ** 2)
    return np.inf if error == 0 else -10 * np.log10(error)


def check_video(model, latents, theirs):
    """Latents and frames against those of diffusers, floating-point numbers in [0, 1]."""
    reached, spread = psnr(decode(model, latents), theirs["video"]), theirs["video"].std()
    print(f"PSNR of the video {reached:.1f} dB, its deviation {spread:.3f}")
    np.testing.assert_allclose(latents, theirs["latents"], atol=1e-4)
    assert spread > 0.05 and reached > 50


@pytest.mark.parametrize("negative", ["", "blue &lt;b&gt;  squares"])
def test_a_pipeline_that_diffusers_saves_makes_the_same_video_here(tmp_path, negative):
    from tests.weights import run_pipelines, tiny_pipelines

    pipeline = tiny_pipelines.make_pipeline(SEED)
    theirs = run_pipelines.run(pipeline, SEED, negative=negative)
    tiny_pipelines.save_pipeline(pipeline, tmp_path)

    model = sora_jax.load(tmp_path)
    text = model.read([run_pipelines.PROMPT], negative)
    latents, _ = sample(model, text, theirs["noise"])
    check_video(model, latents, theirs)


@pytest.mark.parametrize(
    "kind, images, guidance",
    [("clip", 1, 5.0), ("none", 1, 5.0), ("none", 2, 5.0), ("both", 2, 5.0), ("experts", 1, 3.5)],
    ids=str,
)
def test_images_are_animated_as_diffusers_does(tmp_path, kind, images, guidance):
    """With CLIP tokens, with channels alone, with a last image by either, and two transformers."""
    from tests.weights import run_pipelines, tiny_pipelines

    pipeline = tiny_pipelines.make_image_pipeline(kind, SEED)
    drawn = run_pipelines.draw_images(images, SEED)
    theirs = run_pipelines.run_image(pipeline, drawn, SEED, guidance=guidance)
    pipeline.save_pretrained(tmp_path)

    model = sora_jax.load(tmp_path)
    at = (0, run_pipelines.FRAMES - 1)
    seen = model.look(dict(zip(at, theirs["images"])), run_pipelines.FRAMES)
    channels = run_pipelines.lay_images(pipeline, drawn)
    np.testing.assert_allclose(seen.channels, channels, atol=1e-4)
    text = model.read([run_pipelines.PROMPT])
    # The guidance of the model itself.
    latents, _ = sample(model, text, theirs["noise"], seen, guidance=None)
    check_video(model, latents, theirs)


def test_so_does_one_of_5b_from_text_and_from_an_image(tmp_path, monkeypatch):
    from tests.weights import run_pipelines, tiny_pipelines

    pipeline, size = tiny_pipelines.make_ti2v(SEED), (96, 64)
    image = run_pipelines.draw_images(1, SEED, size)[0]
    by_text = run_pipelines.run(pipeline, SEED, size=size)
    by_image = run_pipelines.run(tiny_pipelines.animating(pipeline), SEED, size=size, image=image)
    tiny_pipelines.save_pipeline(pipeline, tmp_path)
    model = sora_jax.load(tmp_path)
    latents, _ = sample(model, model.read([run_pipelines.PROMPT]), by_text["noise"])
    check_video(model, latents, by_text)
    monkeypatch.setattr(type(model), "noise", lambda *_: jnp.asarray(by_image["noise"]))
    given = [Given(model.encode(image[None, None])[0], 0)]
    options = {"size": size, "frames": run_pipelines.FRAMES, "steps": run_pipelines.STEPS}
    check_video(model, model.sample_latents(run_pipelines.PROMPT, given=given, **options), by_image)


@pytest.mark.parametrize("ratio", [0.875, 0.5, 0.9999])
def test_so_does_one_of_two_transformers(tmp_path, ratio):
    """At Wan's boundary, in the middle, and where the first takes one step only."""
    from tests.weights import run_pipelines, tiny_pipelines

    second = tiny_pipelines.make_transformer(SEED + 3)
    pipeline = tiny_pipelines.make_experts(second, SEED)
    pipeline.register_to_config(boundary_ratio=ratio)
    theirs = run_pipelines.run(pipeline, SEED, guidance=(4.0, 3.0))
    tiny_pipelines.save_pipeline(pipeline, tmp_path)
    model = sora_jax.load(tmp_path)
    text = model.read([run_pipelines.PROMPT])
    latents, _ = sample(model, text, theirs["noise"], guidance=None)
    check_video(model, latents, theirs)


@pytest.mark.parametrize("kind", ["clip", "both", "experts", "ti2v", "text experts"])
def test_what_is_exported_is_the_same_pipeline_there(tmp_path, kind):
    """In and out, it makes the video there that diffusers' own folder makes."""
    import diffusers

    from tests.weights import run_pipelines, tiny_pipelines

    sees, options = kind in ("clip", "both", "experts"), {}
    if sees:
        pipeline = tiny_pipelines.make_image_pipeline(kind, SEED)
        images = run_pipelines.draw_images(2 if kind == "both" else 1, SEED)
    elif kind == "ti2v":
        pipeline, options = tiny_pipelines.make_ti2v(SEED), {"size": (96, 64)}
    else:
        pipeline = tiny_pipelines.make_experts(tiny_pipelines.make_transformer(SEED + 3), SEED)
        options = {"guidance": (4.0, 3.0)}

    def run(pipeline):
        if sees:
            return run_pipelines.run_image(pipeline, images, SEED)
        return run_pipelines.run(pipeline, SEED, **options)

    source, model, out = (tmp_path / name for name in ("source", "model", "out"))
    pipeline.save_pretrained(source)
    import_open(str(source), str(model))
    export_pipeline(str(model), str(out))
    folders = source, out
    theirs, ours = (run(diffusers.DiffusionPipeline.from_pretrained(f)) for f in folders)
    assert theirs["video"].std() > 0.05
    reached = [psnr(ours["video"], theirs["video"])]
    if kind == "ti2v":
        image = run_pipelines.draw_images(1, SEED, (96, 64))[0]
        one, other = (
            run_pipelines.run(
                diffusers.WanImageToVideoPipeline.from_pretrained(f), SEED, image=image, **options
            )
            for f in folders
        )
        reached.append(psnr(one["video"], other["video"]))
    print(f"exported, {kind}: {', '.join(f'{value:.1f}' for value in reached)} dB")
    assert min(reached) > 100


@pytest.mark.filterwarnings("ignore:a text of 199 tokens is cut")
def test_the_shipped_model_makes_the_same_video_there(tmp_path):
    import torch
    from diffusers import WanPipeline

    export_pipeline(str(PRETRAINED), str(tmp_path / "out"))
    pipeline = WanPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    model = sora_jax.load()
    settings, prompt = model.settings, "a red circle &amp; a square move  right."
    (width, height), length = settings.size, settings.text_length
    for text in (prompt, "</s> <pad> \u65e5\u672c (ff)", "", "x " * 99):
        cleaned = " ".join(text.replace("&amp;", "&").split())
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        ids = pipeline.tokenizer(cleaned, **options)["input_ids"]
        assert ids == model.tokenizer.encode(text, length).tolist()

    noise = np.array(model.noise(SEED, (1, *model.latent_shape(settings.size, settings.frames))))

    def sample(length):
        return pipeline(
            prompt,
            width=width,
            height=height,
            num_frames=settings.frames,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance.text,
            max_sequence_length=length,
            latents=torch.from_numpy(noise).movedim(-1, 1).contiguous(),
            output_type="np",
        ).frames

    def compare(**changes):
        changed = dataclasses.replace(model, settings=dataclasses.replace(settings, **changes))
        return psnr(decode(model, changed.sample_latents(prompt, seed=SEED)), theirs)

    theirs = sample(length)
    reached = compare(solver="unipc", latent_limit=None, level_grid=1000)
    print(f"the shipped model in diffusers: {reached:.1f} dB, deviation {theirs.std():.3f}")
    # What diffusers has no field for.
    print(f"with a limit: {compare(solver='unipc', level_grid=1000):.1f} dB")
    print(f"with all levels: {compare(solver='unipc', latent_limit=None):.1f} dB")
    print(f"with all of its settings: {compare():.1f} dB")
    print(f"with 512 tokens of text: {psnr(sample(512), theirs):.1f} dB")
    assert theirs.std() > 0.05 and reached > 50
