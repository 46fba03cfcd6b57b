"""A model that diffusers saved gives here what it gives there: text, latents, frames."""

import dataclasses

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax.diffusion.solvers import schedule
from sora_jax.weights.__main__ import import_open
from tests.weights.open_folders import GOLDEN, GUIDANCE, PIPELINE, PROMPT, STEPS


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "pipeline.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return sora_jax.load(PIPELINE)


def sample(model, text, noise, seen=None, guidance=GUIDANCE):
    """Latents and frames [B, F, H, W, 3] from noise, as diffusers' pipeline samples."""
    settings = model.settings.override(steps=STEPS, guidance=guidance)
    levels = schedule(STEPS, model.shift(noise.shape[1:]), grid=settings.level_grid)
    latents = model.advance(text, noise, levels, settings, seen=seen)
    return latents, model.to_frames(latents)


def psnr(result, expected):
    error = np.mean((np.float64(result) - expected) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def padded(text):
    """Text features of the length that the pipeline gives them."""
    result = np.zeros((2, 512, text.shape[2]), np.float32)
    result[:, : text.shape[1]] = text
    return result


def test_prompts_have_the_same_ids_and_features(model, golden):
    ids = model.tokenizer.encode(PROMPT, model.settings.text_length)
    count = len(golden["ids"])
    np.testing.assert_array_equal(ids[:count], golden["ids"])
    assert ids.shape == (512,) and not ids[count:].any()
    text = np.asarray(model.read([PROMPT]))
    kept = golden["text"].shape[1]
    np.testing.assert_allclose(text[:, :kept], golden["text"], atol=1e-5)
    assert not text[:, kept:].any()


def test_the_video_is_the_same(model, golden):
    latents, frames = sample(model, padded(golden["text"]), golden["noise"])
    np.testing.assert_allclose(latents, golden["latents"], atol=2e-4)
    assert frames.std() > 20  # a picture, not a plain colour
    assert psnr(frames, golden["video"]) > 50


def test_settings_are_those_of_the_pipeline(model):
    settings = model.settings
    assert (settings.solver, settings.steps, settings.guidance.text) == ("unipc", 50, 5.0)
    assert (settings.fps, settings.text_length, settings.latent_limit) == (16.0, 512, None)
    assert model.shift((21, 60, 104, 4)) == model.shift((1, 4, 4, 4)) == 5.0
    assert model.dit_config.prediction == "velocity"
    np.testing.assert_array_equal(model.latent_std, np.float32([0.5, 1.2, 0.8, 1.0]))


def test_an_imported_model_is_the_open_one(model, tmp_path):
    import_open(str(PIPELINE), str(tmp_path / "model"))
    imported = sora_jax.load(tmp_path / "model")
    for field in dataclasses.fields(model):
        if field.compare and field.name != "tokenizer":
            one, other = (getattr(m, field.name) for m in (model, imported))
            assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other))
    assert (
        imported.tokenizer.encode(PROMPT, 40).tolist()
        == model.tokenizer.encode(PROMPT, 40).tolist()
    )


def test_parameters_may_be_kept_in_bfloat16(golden):
    model = sora_jax.load(PIPELINE, dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {"bfloat16"}
    stored = sora_jax.load(PIPELINE, dtype="stored")
    assert {x.dtype.name for x in jax.tree.leaves(stored.params)} == {"float16"}
    _, frames = sample(model, model.read([PROMPT]), golden["noise"])
    assert 20 < psnr(frames, golden["video"]) < 90
