"""The whole pipeline beside diffusers' own, in float32; only where torch and diffusers are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.diffusion.conditioning import Given
from sora_jax.models.vae import VAE, denormalise
from tests.weights.test_open_parity import sample

for _library in ("torch", "diffusers", "transformers"):
    pytest.importorskip(_library)

SEED = 7  # not that of the golden files


def compare(model, latents, theirs):
    """Latents and frames, in float32, beside diffusers'."""
    z = denormalise(latents, model.latent_mean, model.latent_std)
    decode = jax.jit(lambda params, z: VAE(model.vae_config).apply(params, z, method="decode")[0])
    frames = np.asarray(decode({"params": model.params["vae"]}, z))
    ours = (np.clip(frames, -1, 1) + 1) / 2
    error = np.mean((np.float64(ours) - theirs["video"]) ** 2)
    psnr = -10 * np.log10(error)
    print(f"PSNR of the video {psnr:.1f} dB, its deviation {theirs['video'].std():.3f}")
    np.testing.assert_allclose(latents, theirs["latents"], atol=1e-4)
    assert theirs["video"].std() > 0.05 and psnr > 50


def test_a_pipeline_that_diffusers_saves_makes_the_same_video_here(tmp_path):
    from tests.weights import make_golden

    pipeline = make_golden.make_pipeline(SEED)
    theirs = make_golden.run(pipeline, SEED)
    make_golden.save_pipeline(pipeline, tmp_path)
    model = sora_jax.load(tmp_path)
    latents, _ = sample(model, model.read([make_golden.PROMPT]), theirs["noise"])
    compare(model, latents, theirs)


def test_so_does_one_of_5b_from_text_and_from_an_image(tmp_path, monkeypatch):
    from tests.weights import make_golden

    pipeline, size = make_golden.make_ti2v(SEED), (96, 64)
    image = make_golden.draw_image(SEED, size)
    by_text = make_golden.run(pipeline, SEED, size=size)
    by_image = make_golden.run(make_golden.animating(pipeline), SEED, size=size, image=image)
    make_golden.save_pipeline(pipeline, tmp_path)
    model = sora_jax.load(tmp_path)
    latents, _ = sample(model, model.read([make_golden.PROMPT]), by_text["noise"])
    compare(model, latents, by_text)
    monkeypatch.setattr(type(model), "noise", lambda *_: jnp.asarray(by_image["noise"]))
    given = [Given(model.encode(image[None, None])[0], 0)]
    options = {"size": size, "frames": make_golden.FRAMES, "steps": make_golden.STEPS}
    compare(model, model.sample_latents(make_golden.PROMPT, given=given, **options), by_image)


@pytest.mark.parametrize("ratio", [0.875, 0.5, 0.9999])
def test_so_does_one_of_two_transformers(tmp_path, ratio):
    """At Wan's boundary, in the middle, and where the first takes one step only."""
    from tests.weights import make_golden

    second = make_golden.make_transformer(SEED + 3)
    pipeline = make_golden.make_experts(second, SEED)
    pipeline.register_to_config(boundary_ratio=ratio)
    theirs = make_golden.run(pipeline, SEED, guidance=(4.0, 3.0))
    make_golden.save_pipeline(pipeline, tmp_path)
    model = sora_jax.load(tmp_path)
    text = model.read([make_golden.PROMPT])
    latents, _ = sample(model, text, theirs["noise"], guidance=None)
    compare(model, latents, theirs)
