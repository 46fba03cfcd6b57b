"""The whole pipeline beside diffusers' own, in float32; only where torch and diffusers are."""

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.models.vae import VAE, denormalise
from tests.weights.test_open_parity import sample

for _library in ("torch", "diffusers", "transformers"):
    pytest.importorskip(_library)

SEED = 7  # not that of the golden files


def check_video(model, latents, theirs):
    """Latents and frames against those of diffusers, floating-point numbers in [0, 1]."""
    z = denormalise(latents, model.latent_mean, model.latent_std)
    decode = jax.jit(lambda params, z: VAE(model.vae_config).apply(params, z, method="decode")[0])
    frames = np.asarray(decode({"params": model.params["vae"]}, z))
    ours = (np.clip(frames, -1, 1) + 1) / 2
    error = np.mean((np.float64(ours) - theirs["video"]) ** 2)
    psnr = -10 * np.log10(error)
    print(f"PSNR of the video {psnr:.1f} dB, its deviation {theirs['video'].std():.3f}")
    np.testing.assert_allclose(latents, theirs["latents"], atol=1e-4)
    assert theirs["video"].std() > 0.05 and psnr > 50


@pytest.mark.parametrize("negative", ["", "blue &lt;b&gt;  squares"])
def test_a_pipeline_that_diffusers_saves_makes_the_same_video_here(tmp_path, negative):
    from tests.weights import make_golden

    pipeline = make_golden.make_pipeline(SEED)
    theirs = make_golden.run(pipeline, SEED, negative)
    make_golden.save_pipeline(pipeline, tmp_path)

    model = sora_jax.load(tmp_path)
    text = model.read([make_golden.PROMPT], negative)
    latents, _ = sample(model, text, theirs["noise"])
    check_video(model, latents, theirs)


@pytest.mark.parametrize(
    "kind, images", [("clip", 1), ("none", 1), ("none", 2), ("both", 2)], ids=str
)
def test_images_are_animated_as_diffusers_does(tmp_path, kind, images):
    """With CLIP tokens, with channels alone, and with a last image by either."""
    from tests.weights import make_golden

    pipeline = make_golden.make_image_pipeline(kind, SEED)
    theirs = make_golden.run_image(pipeline, make_golden.draw_images(images, SEED), SEED)
    pipeline.save_pretrained(tmp_path)

    model = sora_jax.load(tmp_path)
    at = (0, make_golden.FRAMES - 1)
    seen = model.look(dict(zip(at, theirs["images"])), make_golden.FRAMES)
    latents, _ = sample(model, model.read([make_golden.PROMPT]), theirs["noise"], seen)
    check_video(model, latents, theirs)
