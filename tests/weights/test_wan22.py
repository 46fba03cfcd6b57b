"""Models of Wan 2.2's kinds give here what diffusers makes of them: TI2V 5B, and two experts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_lora import LORA, draw_adapters, merged

import sora_jax
from sora_jax.diffusion.conditioning import Given
from sora_jax.models.lora import scaled
from sora_jax.weights.__main__ import export, import_open
from sora_jax.weights.lora import lora_to_diffusers
from sora_jax.weights.lora_folder import save_lora, transformer_sha256
from tests.weights.open_folders import (
    GOLDEN,
    PIPELINE,
    PROMPT,
    STEPS,
    add_second,
    copy_experts,
    copy_image_pipeline,
    copy_ti2v,
)
from tests.weights.test_open_parity import padded, psnr, sample
from tests.weights.test_small_memory import take_turns


def load_golden(name):
    with np.load(GOLDEN / name) as file:
        return dict(file)


@pytest.fixture(scope="module")
def text():
    return padded(load_golden("pipeline.npz")["text"])


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory):
    return sora_jax.load(copy_ti2v(tmp_path_factory.mktemp("ti2v") / "open"))


@pytest.fixture(scope="module")
def experts_folder(tmp_path_factory):
    return copy_experts(tmp_path_factory.mktemp("experts") / "open")


@pytest.fixture(scope="module")
def experts(experts_folder):
    return sora_jax.load(experts_folder)


def test_text_to_video_of_5b_is_the_same(ti2v, text):
    golden = load_golden("ti2v.npz")
    latents, frames = sample(ti2v, text, golden["noise"])
    np.testing.assert_allclose(latents, golden["text/latents"], atol=2e-4)
    assert frames.std() > 20 and psnr(frames, golden["text/video"]) > 50


def test_image_to_video_of_5b_is_the_same(ti2v, monkeypatch):
    """An image is a first latent frame that is held at level 0."""
    golden = load_golden("ti2v.npz")
    image = golden["image"]
    monkeypatch.setattr(type(ti2v), "noise", lambda self, seed, shape: jnp.asarray(golden["noise"]))
    given = [Given(ti2v.encode(image[None, None])[0], 0)]
    options = {"size": (64, 32), "frames": 9, "steps": STEPS}
    latents = ti2v.sample_latents(PROMPT, given=given, **options)
    np.testing.assert_allclose(latents, golden["image/latents"], atol=2e-4)
    frames = ti2v.to_frames(latents)
    assert frames.std() > 20 and psnr(frames, golden["image/video"]) > 50
    # `animate` is that, with the image as it came and the step from it faded out.
    clip = sora_jax.animate(ti2v, image, PROMPT, frames=9, steps=STEPS)
    np.testing.assert_array_equal(clip[0], image)
    np.testing.assert_array_equal(clip[5:], frames[0, 5:])


def test_settings_of_5b_are_its_own(ti2v):
    settings = ti2v.settings
    assert (settings.fps, settings.size, settings.frames) == (24.0, (1280, 704), 121)
    assert (settings.shift, settings.steps, settings.guidance.text) == (5.0, 50, 5.0)
    assert settings.boundary is None


def test_two_experts_make_the_same_video(experts, text):
    golden = load_golden("experts.npz")
    latents, frames = sample(experts, text, golden["noise"], guidance=None)
    np.testing.assert_allclose(latents, golden["text/latents"], atol=2e-4)
    assert frames.std() > 20 and psnr(frames, golden["text/video"]) > 50
    # Both guidances and both networks matter.
    _, other = sample(experts, text, golden["noise"], guidance=4.0)
    assert psnr(other, golden["text/video"]) < 40


def test_settings_of_two_experts_are_wans(experts):
    settings = experts.settings
    assert (settings.boundary, settings.shift, settings.steps) == (0.875, 12.0, 40)
    assert (settings.guidance.text, settings.guidance.text_low) == (4.0, 3.0)
    assert (settings.fps, settings.size, settings.frames) == (16.0, (1280, 720), 81)
    assert settings.override(guidance=5.0).guidance.at_low_noise().text == 5.0


@pytest.mark.parametrize("write", ["import", "export"])
def test_two_experts_in_a_model_folder_are_the_same(experts, experts_folder, tmp_path, write):
    """The golden files hold float16, so halving them changes nothing."""
    import_open(str(experts_folder), str(tmp_path / "model"))
    folder = tmp_path / "model"
    if write == "export":
        export(str(folder), str(tmp_path / "half"))
        folder = tmp_path / "half"
    model = sora_jax.load(folder)
    assert set(model.params) == {"vae", "dit", "dit_low", "text"}
    for field in dataclasses.fields(model):
        if field.compare and field.name != "tokenizer":
            one, other = (getattr(m, field.name) for m in (model, experts))
            assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other))


def test_a_model_folder_of_two_experts_is_whole_or_refused(experts_folder, tmp_path):
    import_open(str(experts_folder), str(tmp_path))
    file = tmp_path / "model.json"
    whole = json.loads(file.read_text())

    def refused(match, **changes):
        file.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(ValueError, match=match):
            sora_jax.load(tmp_path)

    parts = whole["parts"]
    refused("is None, and the parts .* has both, the level and 'dit_low', or nei", boundary=None)
    one = {name: part for name, part in parts.items() if name != "dit_low"}
    refused("is 0.875, and the parts are .'dit', 'text', 'vae'.", parts=one)
    unlike = {**parts, "dit_low": {**parts["dit_low"], "layers": 1}}
    refused("of high and of low noise have different sizes", parts=unlike)


def test_an_edit_below_the_boundary_needs_one_expert_only(experts):
    """The other is not so much as looked up, and so need not be in memory."""
    video = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    only = {name: part for name, part in experts.params.items() if name != "dit"}
    low = dataclasses.replace(experts, params=only)
    edits = [sora_jax.edit(model, video, PROMPT, 0.3, steps=3) for model in (experts, low)]
    np.testing.assert_array_equal(*edits)
    with pytest.raises(KeyError, match="dit"):
        sora_jax.edit(low, video, PROMPT, 0.9, steps=3)


def test_experts_take_turns_and_are_alone_in_memory(experts):
    turns, read = take_turns(experts)
    options = {"size": (48, 32), "frames": 5, "steps": 4, "negative": "blue"}
    clips = [model.sample(PROMPT, **options) for model in (experts, turns)]
    np.testing.assert_array_equal(*clips)
    assert read == ["text", "dit", "dit_low", "vae"]


@pytest.fixture
def adapters(experts, experts_folder, tmp_path):
    """A model folder, a file for its first transformer, a LoRA run of its second, what both do."""
    import_open(str(experts_folder), str(tmp_path / "model"))
    params, parts, drawn = {}, ("dit", "dit_low"), {}
    for seed, part in enumerate(parts):
        low_rank = draw_adapters(seed=seed, config=experts.dit_config)
        params[part] = merged(experts.params[part], low_rank, LORA.scale)
        drawn[part] = lora_to_diffusers(scaled(low_rank, LORA.scale), experts.dit_config)
    save_file(drawn["dit"], tmp_path / "high.safetensors")
    base = tmp_path / "model", transformer_sha256(tmp_path / "model", "dit_low")
    settings = {**dataclasses.asdict(experts.settings), "steps": 3}
    save_lora(tmp_path / "run" / "model", drawn["dit_low"], *base, settings, "dit_low")
    return tmp_path / "model", tmp_path / "high.safetensors", tmp_path / "run", params


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_adapters_are_added_to_the_transformer_that_they_are_for(experts, adapters, tmp_path):
    model, high, run, params = adapters
    both = sora_jax.load(model, lora=high, lora_low=run)
    assert_close({part: both.params[part] for part in params}, params)
    only = sora_jax.load(run)
    assert_close(only.params["dit_low"], params["dit_low"])
    assert jax.tree.all(jax.tree.map(np.array_equal, only.params["dit"], experts.params["dit"]))
    assert (only.settings.steps, both.settings.steps) == (3, 40)
    # A run's folder with the other's, one after the other in memory, and as one model.
    export(str(run), str(tmp_path / "one"), lora=str(high))
    for loaded in (sora_jax.load(run, lora=high, in_turn=True), sora_jax.load(tmp_path / "one")):
        assert loaded.settings == only.settings
        for part, expected in params.items():
            found = jax.device_get(loaded.params[part])
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), found, expected)


def test_adapters_for_the_other_transformer_are_refused(adapters, tmp_path):
    model, high, run, _ = adapters
    with pytest.raises(ValueError, match=r"for the other of two .* give them as lora_low, not as"):
        sora_jax.load(model, lora=run)
    with pytest.raises(ValueError, match="is of a LoRA run and has adapters already; leave out"):
        sora_jax.load(run, lora_low=high)
    with pytest.raises(ValueError, match=r"has one transformer, .*high.safetensors are given as "):
        sora_jax.load(PIPELINE, lora_low=high)
    (model / "dit_low.safetensors").write_bytes((model / "dit.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"another one now; .* MODEL with --lora_low=.*run/model"):
        sora_jax.load(run)
    description = run / "model" / "model.json"
    said = json.loads(description.read_text())
    description.write_text(json.dumps({**said, "base_part": ["dit"]}))
    with pytest.raises(ValueError, match=r"base_part is \['dit'\], and must be one of"):
        sora_jax.load(run)
    description.write_text(json.dumps({**said, "base_part": "vae"}))
    with pytest.raises(ValueError, match=r"base_part is 'vae', and must be one of \['dit', 'dit_l"):
        sora_jax.load(run)


def test_experts_that_see_images_animate_as_one_that_is_twice_the_same(tmp_path):
    one = sora_jax.load(copy_image_pipeline(tmp_path / "one"))
    add_second(copy_image_pipeline(tmp_path / "two"), lambda tensors: None, 0.9)
    two = sora_jax.load(tmp_path / "two")
    settings = two.settings
    assert (settings.boundary, settings.steps, settings.size) == (0.9, 40, (1280, 720))
    assert settings.guidance.text == settings.guidance.at_low_noise().text == 3.5
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    options = {"frames": 5, "steps": 6, "guidance": 3.5}
    clips = [sora_jax.animate(model, image, PROMPT, **options) for model in (one, two)]
    np.testing.assert_allclose(*(np.float32(clip) for clip in clips), atol=1)
    # The same by other transformers would not be.
    turned = {**two.params, "dit_low": jax.tree.map(lambda x: x[..., ::-1], one.params["dit"])}
    other = sora_jax.animate(dataclasses.replace(two, params=turned), image, PROMPT, **options)
    assert np.abs(other - np.float32(clips[0])).max() > 20


def test_what_rolls_along_needs_one_network(experts):
    with pytest.raises(ValueError, match="beyond models of two transformers"):
        next(sora_jax.long_video(experts, PROMPT, 3.0, size=(48, 32), steps=2))
