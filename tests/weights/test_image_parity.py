"""A model that sees images beside the noise makes here what it makes in diffusers."""

import dataclasses

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax import generation
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.solvers import schedule
from sora_jax.models import vae_clips
from sora_jax.models.dit import DiT
from sora_jax.models.image import ImageEncoder
from sora_jax.models.image_pixels import prepare
from sora_jax.weights.__main__ import import_open
from tests.weights.open_folders import GOLDEN, PROMPT, copy_image_pipeline
from tests.weights.test_open_parity import psnr, sample

SIZE, FRAMES = (48, 32), 9


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "image.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_image_pipeline(tmp_path_factory.mktemp("image") / "open")


@pytest.fixture(scope="module")
def model(folder):
    return sora_jax.load(folder)


def assert_close(result, expected, tolerance=1e-5):
    assert np.abs(result - expected).max() < tolerance * np.abs(expected).max()


def test_the_encoder_sees_the_same_pixels_and_says_the_same_of_them(model, golden):
    pixels = prepare(golden["images"][0], model.image_config)
    np.testing.assert_allclose(pixels[None], golden["pixels"], atol=1e-6)
    run = jax.jit(ImageEncoder(model.image_config).apply)
    tokens, summary = run({"params": model.params["image"]}, golden["pixels"])
    assert_close(tokens, golden["tokens"])
    assert_close(summary, golden["summary"])


def test_the_transformer_reads_image_tokens_as_wans(model, golden):
    text = np.zeros((2, 512, 12), np.float32)
    text[:, :20] = golden["dit/text"]
    levels = np.repeat(np.float32([[0.3], [0.95]]), 3, axis=1)
    run = jax.jit(DiT(model.dit_config).apply)
    inputs = golden["dit/x"], levels, text, golden["dit/image"]
    assert_close(run({"params": model.params["dit"]}, *inputs), golden["dit/y"])


def test_the_video_is_the_same(model, golden):
    seen = model.look({0: golden["images"][0]}, FRAMES)
    latents, frames = sample(model, model.read([PROMPT]), golden["noise"], seen)
    np.testing.assert_allclose(latents, golden["latents"], atol=2e-4)
    assert frames.std() > 20  # a picture, not a plain colour
    assert psnr(frames, golden["video"]) > 50


def test_an_image_is_animated_in_one_program_and_matters(model, golden):
    image, sampling = golden["images"][0], {"frames": FRAMES, "steps": 2}
    one = sora_jax.animate(model, image, PROMPT, **sampling)
    programs = generation.generate, generation.lay_images, generation.look
    before = [program._cache_size() for program in programs]
    other = sora_jax.animate(model, 255 - image, "A blue square.", **sampling)
    assert [program._cache_size() for program in programs] == before
    assert one.shape == (FRAMES, SIZE[1], SIZE[0], 3) and np.abs(one - other.astype(int)).mean() > 1
    noise = model.noise(0, (1, 3, 4, 6, 4))
    settings = model.settings.override(steps=2)
    levels = schedule(2, model.shift((3, 4, 6, 4)), grid=settings.level_grid)
    seen = model.look({0: image}, FRAMES)
    latents = model.advance(model.read([PROMPT]), noise, levels, settings, seen=seen)
    np.testing.assert_allclose(model.to_frames(latents)[0], one.astype(int), atol=1)
    both = sora_jax.animate(model, image, [PROMPT, "A blue square."], **sampling)
    assert both.shape == (2, *one.shape)
    # As a keyframe at the beginning it is the same.
    by_time = sora_jax.from_keyframes(model, {0.0: image}, PROMPT, **sampling)
    np.testing.assert_array_equal(by_time, one)


def test_a_long_clip_of_grey_frames_is_encoded_piece_by_piece(model, golden, monkeypatch):
    images = {0: golden["images"][0], FRAMES - 1: golden["images"][0]}
    whole = model.look(images, FRAMES).channels
    mask = np.zeros((3, 4))
    mask[0], mask[2, 3] = 1, 1  # all of the first latent frame, and the last of the last one's
    np.testing.assert_array_equal(whole[0, :, 1, 2, :4], mask)
    monkeypatch.setattr(vae_clips, "WHOLE_CLIP", 0)
    generation.lay_images.clear_cache()
    pieces = model.look(images, FRAMES).channels
    generation.lay_images.clear_cache()
    np.testing.assert_allclose(pieces, whole, atol=1e-4)
    assert np.abs(whole[0, 1, ..., 4:]).max() > 0.1


def test_what_begins_with_no_image_is_refused_before_any_network_runs(model, golden):
    model = dataclasses.replace(model, params={})
    image = golden["images"][0]
    video = np.repeat(golden["images"], 9, axis=0)
    for make in (
        lambda: sora_jax.extend(model, video, PROMPT, 1.0),
        lambda: sora_jax.edit(model, video, PROMPT, 0.5),
        lambda: sora_jax.enlarge(model, video, PROMPT, (96, 64)),
        lambda: sora_jax.connect(model, video, video, PROMPT, 1.0),
        lambda: sora_jax.loop(model, video, PROMPT, 1.0),
        lambda: next(sora_jax.long_video(model, PROMPT, 9.0)),
        lambda: sora_jax.endless_loop(model, PROMPT, 1.0),
    ):
        with pytest.raises(ValueError, match="animate an image, or take a text-to-video model"):
            make()
    shared = {"size": SIZE, "frames": FRAMES}
    with pytest.raises(ValueError, match=r"there is none: give one \(--image, sora_jax.animate\)"):
        model.sample(PROMPT, **shared)
    with pytest.raises(ValueError, match=r"frames \[0, 8\] of 0 to 8, .* takes one image, as the"):
        model.sample(PROMPT, images={0: image, 8: image}, **shared)
    with pytest.raises(ValueError, match=r"frames \[4\] of 0 to 8"):
        model.sample(PROMPT, images={4: image}, **shared)
    with pytest.raises(ValueError, match=r"frame 0 is uint8 \[16, 48, 3\]; .* \[32, 48, 3\]"):
        model.sample(PROMPT, images={0: image[:16]}, **shared)
    with pytest.raises(ValueError, match="is the image itself; ask for more frames"):
        model.sample(PROMPT, images={0: image}, size=SIZE, frames=1)
    with pytest.raises(ValueError, match=r"given frames, 2, has no meaning .*--given_guidance"):
        sora_jax.animate(model, image, PROMPT, frames=FRAMES, guidance=Guidance(5.0, 2.0))
    with pytest.raises(ValueError, match=r"strength 0.5: this model takes images as they are"):
        sora_jax.from_keyframes(model, {0: image}, PROMPT, strength=0.5, frames=FRAMES)


def test_images_beside_the_noise_are_not_for_other_models(golden):
    model = dataclasses.replace(sora_jax.load(), params={})
    with pytest.raises(ValueError, match="sees no images beside the noise; give frames as latents"):
        model.sample(PROMPT, images={0: golden["images"][0]})


def test_an_imported_model_is_the_open_one(model, folder, tmp_path):
    import_open(str(folder), str(tmp_path / "model"))
    imported = sora_jax.load(tmp_path / "model")
    assert imported.image_config == model.image_config
    assert imported.dit_config == model.dit_config
    assert jax.tree.all(jax.tree.map(np.array_equal, imported.params, model.params))
    (tmp_path / "model" / "image.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"image.safetensors is missing"):
        sora_jax.load(tmp_path / "model")
