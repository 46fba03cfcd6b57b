"""Sampling from a model folder: shapes, seeds, the given first frame, decoding, errors."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax import generation, pipeline
from sora_jax.diffusion.conditioning import Given
from sora_jax.diffusion.flow import shift_levels
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.loading import PRETRAINED
from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.pixels import to_uint8
from sora_jax.models.vae import VAE
from sora_jax.video_io import decode, probe
from sora_jax.weights.model_folder import Part, save_model
from tests.tiny_model import (
    DIT_CONFIG,
    FRAMES,
    PROMPT,
    SETTINGS,
    SIZE,
    VAE_CONFIG,
    draw_params,
    write_model,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return sora_jax.load(folder)


@pytest.fixture(scope="module")
def clip(model):
    return model.sample(PROMPT, seed=1)


def test_a_folder_says_what_the_model_is(model):
    assert model.fps == 8.0
    assert (model.vae_config, model.dit_config) == (VAE_CONFIG, DIT_CONFIG)
    assert model.settings == ModelSettings(**SETTINGS)


def test_a_video_has_the_size_and_length_of_the_settings(clip):
    assert clip.shape == (FRAMES, SIZE[1], SIZE[0], 3) and clip.dtype == np.uint8
    assert clip.std() > 5


def test_an_image_is_a_video_of_one_frame(model):
    assert model.sample(PROMPT, size=(16, 32), frames=1).shape == (1, 32, 16, 3)


def test_the_seed_decides(model, clip):
    np.testing.assert_array_equal(model.sample(PROMPT, seed=1), clip)
    other = model.sample(PROMPT, seed=2)
    assert np.abs(other.astype(int) - clip).mean() > 1


def test_the_prompt_and_guidance_matter(model, clip):
    for changed in (
        model.sample("a blue square moves up", seed=1),
        model.sample(PROMPT, seed=1, guidance=0.0),
    ):
        assert np.abs(changed.astype(int) - clip).mean() > 0.01


def test_guidance_one_ignores_the_empty_prompt(model):
    changed = dataclasses.replace(model, tokenizer=AlwaysEnd(model.tokenizer))
    both = [m.sample_latents(PROMPT, guidance=1.0) for m in (model, changed)]
    np.testing.assert_allclose(*both, atol=1e-4)
    both = [m.sample_latents(PROMPT, guidance=3.0) for m in (model, changed)]
    assert np.abs(both[0] - both[1]).max() > 1e-3


class AlwaysEnd:
    """A tokenizer with another empty prompt."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.check_length = tokenizer.check_length

    def encode(self, text, length):
        return self.tokenizer.encode(text or "blue up", length)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_slow_steps_are_taken_one_by_one_and_told(model, monkeypatch, capsys, solver):
    def make():
        return model.sample_latents(PROMPT, seed=1, steps=4, solver=solver)

    whole = make()
    assert "sampled" not in capsys.readouterr().err
    monkeypatch.setattr(generation, "_SLOW", 0)
    np.testing.assert_allclose(make(), whole, atol=1e-4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sampled 4 of 4 steps, ") and line.endswith(" left")


def test_a_list_of_prompts_is_a_batch(model, clip):
    batch = model.sample([PROMPT, PROMPT], seed=1)
    assert batch.shape == (2, *clip.shape)
    # The first is the clip of the prompt alone; the second has noise of its own.
    assert np.abs(batch[0].astype(int) - clip).max() <= 1
    assert np.abs(batch[1].astype(int) - clip).mean() > 1


def test_latents_that_are_given_stay(model):
    rng = np.random.default_rng(0)
    given = Given(rng.normal(size=(1, SIZE[1] // 8, SIZE[0] // 8, 4)).astype(np.float32), 1)
    latents = model.sample_latents(2 * [PROMPT], given=[given])
    for clip in np.asarray(latents):
        np.testing.assert_array_equal(clip[1], given.latents[0])
    assert np.abs(latents[0] - latents[1]).max() > 0.1


def test_normalised_latents_decode_as_the_network_made_them(model):
    image = np.random.default_rng(0).integers(0, 256, (1, 1, SIZE[1], SIZE[0], 3), np.uint8)
    decoded = next(model.decode(model.encode(image)))
    params = {"params": model.params["vae"]}
    mean = VAE(VAE_CONFIG).apply(params, image / np.float32(127.5) - 1, method="encode")[0]
    expected = to_uint8(VAE(VAE_CONFIG).apply(params, mean, method="decode")[0])
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_decoding_in_chunks_equals_the_whole(model, monkeypatch):
    shape = model.latent_shape(SIZE, 21)
    latents = jax.random.normal(jax.random.key(0), (2, *shape))
    (whole,) = model.decode(latents)
    monkeypatch.setattr(pipeline, "WHOLE_DECODE", 1)
    chunks = list(model.decode(latents))
    assert [chunk.shape[1] for chunk in chunks] == [13, 8]
    assert np.abs(np.concatenate(chunks, axis=1).astype(int) - whole).max() <= 1
    assert np.abs(model.to_frames(latents).astype(int) - whole).max() <= 1


def test_new_prompts_seeds_and_images_compile_nothing(model, clip):
    before = generation.generate._cache_size()
    given = Given(np.zeros((1, SIZE[1] // 8, SIZE[0] // 8, 4), np.float32), 0, 0.3)
    model.sample_latents("a blue square", seed=9, guidance=1.5)
    model.sample_latents("", seed=10, given=[given])
    assert generation.generate._cache_size() == before > 0


def by_hand(model, guidance, negative, seed, first, steps):
    """Animates latents `first` with Euler's method, the network called once for each question."""
    shape = (1, *model.latent_shape(SIZE, FRAMES))
    shift = model.shift(shape[1:])
    noise = np.asarray(model.noise(seed, shape))
    levels = shift_levels(np.linspace(1.0, 0.0, steps + 1), shift)
    low, high = shift_levels(np.array(guidance.interval), shift)
    features = np.asarray(model.read([PROMPT, negative]))
    held = np.arange(shape[1]).reshape(-1, 1, 1, 1) == 0
    x = np.where(held, first, noise)

    def ask(prompt, frames, t):
        text = features[:1] if prompt else features[1:2]
        seen, levels = x, np.float32([[0.0, *[t] * (shape[1] - 1)]])
        if not frames:
            seen, levels = np.where(held, noise, x), np.where(levels == 0, 1.0, levels)
        y = DiT(DIT_CONFIG).apply({"params": model.params["dit"]}, seen, levels, text)
        return np.asarray(y)

    for t, s in itertools.pairwise(levels):
        clean = full = ask(True, True, t)
        if low <= t <= high:
            nothing, frames = ask(False, False, t), ask(False, True, t)
            # The frame that is given is at level 0, outside of the interval.
            scaled = np.where(held, 1.0, guidance.given), np.where(held, 1.0, guidance.text)
            clean = nothing + scaled[0] * (frames - nothing) + scaled[1] * (full - frames)
            ratio = full[:, 1:].std() / clean[:, 1:].std()
            clean = np.where(held, clean, clean * (1 + guidance.rescale * (ratio - 1)))
        clean = np.clip(clean, -6, 6)
        x = np.where(held, first, x + (s - t) * (x - clean) / t)
    return x


@pytest.mark.parametrize("at_once", [2**28, 0], ids=["one batch", "one after the other"])
def test_guidance_is_what_asking_by_hand_gives(model, monkeypatch, at_once):
    monkeypatch.setattr(generation, "_AT_ONCE", at_once)
    generation.generate.clear_cache()
    guidance = Guidance(3.0, 2.0, (0.15, 0.85), 0.5)
    first = np.asarray(model.noise(5, model.latent_shape(SIZE, 1)))
    given = [Given(first, 0)]
    asked = {"seed": 4, "steps": 5, "guidance": guidance, "given": given}
    for negative in ("", "a blue square"):
        result = model.sample_latents(PROMPT, negative=negative, **asked)
        expected = by_hand(model, guidance, negative, 4, first, 5)
        np.testing.assert_allclose(result, expected, atol=1e-4)
    generation.generate.clear_cache()


def test_a_negative_prompt_by_default_has_no_use_without_guidance(model):
    """One that is asked for is refused, see below; that of the model does as if there were none."""
    settings = dataclasses.replace(model.settings, negative="a blue square")
    negated = dataclasses.replace(model, settings=settings)
    asked = {"seed": 1, "frames": 1, "guidance": 1.0}
    result = negated.sample_latents(PROMPT, **asked)
    np.testing.assert_array_equal(result, model.sample_latents(PROMPT, **asked))
    assert settings.override(steps=3).negative == "a blue square"


def test_guidance_by_frames_needs_frames_that_are_kept(model, clip):
    by_frames = Guidance(SETTINGS["guidance"], 5.0)
    np.testing.assert_array_equal(model.sample(PROMPT, seed=1, guidance=by_frames), clip)


def test_heun_is_another_solver(model, clip):
    heun = model.sample(PROMPT, seed=1, solver="heun")
    assert heun.shape == clip.shape and (heun != clip).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (36, 16)}, "width 36 does not fit.*multiple of 8.*nearest are 32 and 40"),
        ({"size": (32, 4)}, "height 4 does not fit.*nearest are 8 and 16"),
        ({"frames": 7}, "7 frames.*1 \\+ 4k.*nearest are 5 and 9"),
        ({"frames": 0}, "0 frames.*nearest are 1 and 5"),
        ({"solver": "rk4"}, "'rk4' is unknown; use one of \\['deis', 'euler', 'heun', 'unipc'\\]"),
        ({"steps": 0}, "steps 0 must be a whole number of at least 1"),
        ({"guidance": -1.0}, "guidance -1.0 is out of range"),
        ({"guidance": float("nan")}, "guidance nan is out of range"),
        ({"negative": ["blurred"]}, r"negative prompt is \['blurred'\]: give one text for all"),
        ({"negative": "a", "guidance": 1.0}, "there is none at 1: ask for guidance of more"),
        ({"negative": "circle " * 20}, "prompt takes 21 tokens"),
        ({"seed": 2**32}, "seed 4294967296 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"prompt": "circle " * 20}, "prompt takes 21 tokens, and the model reads 8; shorten"),
        ({"prompt": []}, "no prompt in the list"),
        ({"given": [Given(np.zeros((1, 2, 2, 4)), 0)]}, "encode them at the clip's own size"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**{"prompt": PROMPT, **arguments})


def edit(change):
    """Damage to the description of a model folder."""

    def apply(path):
        description = json.loads((path / "model.json").read_text())
        change(description)
        (path / "model.json").write_text(json.dumps(description))

    return apply


def other_dit(**sizes):
    """The transformer of another model, whole by itself."""

    def apply(path):
        config = dataclasses.replace(DIT_CONFIG, **sizes)
        file = "dit.safetensors"
        part = Part(dataclasses.asdict(config), draw_params(init_dit, config))
        save_model(path / "other", {"dit": part}, {})
        (path / "other" / file).replace(path / file)
        edit(lambda d: d["parts"]["dit"].update(sizes))(path)

    return apply


def truncate(path):
    file = path / "dit.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "holds no model.json; give a model folder"),
        (lambda path: (path / "model.json").unlink(), "holds no model.json"),
        (lambda path: (path / "model.json").write_text("{"), "model.json is not JSON"),
        (lambda path: (path / "model.json").write_text("[]"), "is not a 'sora_jax model 1' file"),
        (edit(lambda d: d.update(format="other")), "is not a 'sora_jax model 1' file"),
        (edit(lambda d: d.update(parts=["vae"])), "model.json: parts must be settings by name"),
        (edit(lambda d: d["parts"].update(vae=3)), "model.json: parts must be settings by name"),
        (edit(lambda d: d["parts"].pop("dit")), "has no 'dit' part, only .'text', 'vae'"),
        (edit(lambda d: d.pop("shift")), "model.json lacks 'shift'"),
        (edit(lambda d: d.update(solver="dpm")), "model.json: solver 'dpm' is unknown"),
        (edit(lambda d: d.update(size=[96])), "model.json: size .96. must be .width, height."),
        (edit(lambda d: d.update(fps="8")), "model.json: .*; write the model folder again"),
        *(
            (edit(lambda d, wrong=wrong: d.update(wrong)), f"model.json: .*{message}")
            for wrong, message in [
                ({"level_grid": 999.5}, "level_grid 999.5 must be a whole number .* such as 1000"),
                ({"level_grid": True}, "level_grid True must be a whole number of at least 1"),
                ({"frames": 6}, "size .* and frames 6: 6 frames .* 1 . 4k .* nearest are 5 and 9"),
                ({"frames": 5.0}, "frames 5.0 must be a whole number"),
                ({"size": [30, 16]}, r"size \(30, 16\) and frames 5: width 30 .* multiple of 8"),
                ({"size": ["32", 16]}, "size .* must be .width, height."),
                ({"size": 32}, "size 32 must be .width, height."),
                ({"fps": True}, "fps True must be a positive number, such as 16.0"),
                ({"text_length": 8.5}, "text_length 8.5 must be a whole number"),
                ({"shift": "2"}, "shift '2' must be a positive number, such as 5.0"),
                ({"shift_tokens": 0}, "shift_tokens 0 must be a whole number"),
                ({"latent_limit": float("nan")}, "latent_limit nan must be a positive number"),
                ({"steps": 2.5}, "steps 2.5 must be a whole number of at least 1, such as 20"),
                ({"solver": ["euler"]}, "solver .'euler'. is unknown"),
                ({"guidance": "3"}, "'text': '3'.* are no guidance"),
                ({"guidance": {"scale": 3}}, "guidance has no 'scale'; it has .'text', 'given'"),
                ({"guidance": {"interval": "01"}}, "the interval '01' are no guidance"),
                ({"negative": "circle " * 20}, "negative: .* prompt takes 21 tokens"),
            ]
        ),
        (edit(lambda d: d["parts"]["vae"].update(latent_mean=4 * [1e99])), "latent_mean is .1e.99"),
        (edit(lambda d: d["parts"]["vae"].update(latent_std=4 * [1e-99])), "1e-99 must be positi"),
        (edit(lambda d: d["parts"]["vae"].update(blocks=1.0)), "VAEConfig.blocks is 1.0"),
        (edit(lambda d: d["parts"]["vae"].update(temporal=[1, 1])), r"VAEConfig.temporal is \(1,"),
        (edit(lambda d: d["parts"]["vae"].update(shortcuts=0)), "VAEConfig.shortcuts is 0; make"),
        (edit(lambda d: d["parts"]["vae"].pop("latent_std")), "lacks 'latent_std'"),
        (edit(lambda d: d["parts"]["vae"].update(latent_mean=4 * [None])), "latent_mean is .None,"),
        (edit(lambda d: d["parts"]["vae"].update(latent_std=4 * [0.0])), "0.0 must be positive"),
        (edit(lambda d: d["parts"]["dit"].update(depth=2)), "DiTConfig has no field 'depth'"),
        (edit(lambda d: d["parts"]["text"].pop("width")), "TextConfig.*'width'"),
        (edit(lambda d: d["parts"]["dit"].update(width=64)), "has shape .* asks for"),
        (edit(lambda d: d["parts"]["vae"].update(blocks=2)), "lacks '.*block_.*another config"),
        (edit(lambda d: d["parts"]["dit"].update(mlp_width=32)), "mlp.* has shape"),
        (lambda path: (path / "text.safetensors").unlink(), "text.safetensors is missing"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer at"),
        (truncate, "dit.safetensors is truncated or damaged"),
        (
            edit(lambda d: d["parts"]["vae"].update(latent_mean=[0.0])),
            "latent_mean is 1, and the parts beside it need",
        ),
        (
            lambda path: shutil.copy(PRETRAINED / "tokenizer.json", path),
            "model: its tokenizer has .* ids and its text encoder only .*; take both from one",
        ),
        (
            edit(lambda d: d["parts"]["vae"].update(latent_std=5 * [1.0])),
            "model: the length of latent_std is 5, and .* need 4; .* take all of them from one",
        ),
        (other_dit(latent_channels=8), "latent_channels of the dit is 8, and .* need 4"),
        (other_dit(text_width=24), "text_width of the dit is 24, and .* need 16"),
        (edit(lambda d: d["parts"]["dit"].update(patch=[2, 2])), "model.json: DiTConfig.patch is"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, damage, message):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sora_jax.load(path)


def test_the_folder_of_a_run_holds_its_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    assert sora_jax.load(tmp_path).settings == ModelSettings(**SETTINGS)


def test_saving_writes_what_the_suffix_says(clip, tmp_path):
    sora_jax.save(clip, tmp_path / "clip.mp4", fps=8)
    sora_jax.save(clip[0], tmp_path / "image.png")
    info = probe(tmp_path / "clip.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (FRAMES, *SIZE, 8)
    np.testing.assert_array_equal(decode(tmp_path / "image.png")[0], clip[0])
