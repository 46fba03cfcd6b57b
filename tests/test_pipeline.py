"""Sampling from a model: shapes, seeds, the given first frame, decoding, errors."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

import sora_jax
from sora_jax import frame_coder, generation
from sora_jax.diffusion.conditioning import Given
from sora_jax.diffusion.flow import shift_levels
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.models.dit import DiT
from sora_jax.models.pixels import to_uint8
from sora_jax.models.vae import VAE
from sora_jax.video_io import decode, probe
from tests.tiny_model import (
    DIT_CONFIG,
    FRAMES,
    PROMPT,
    SETTINGS,
    SIZE,
    VAE_CONFIG,
)


@pytest.fixture(scope="module")
def clip(model):
    return model.sample(PROMPT, seed=1)


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
    run = jax.jit(VAE(VAE_CONFIG).apply, static_argnames="method")
    mean = run(params, image / np.float32(127.5) - 1, method="encode")[0]
    expected = to_uint8(run(params, mean, method="decode")[0])
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_frames_that_are_no_pixels_are_not_encoded(model):
    for wrong in (np.zeros((1, 1, SIZE[1], SIZE[0], 3)), np.zeros((1, SIZE[1], SIZE[0], 3), "u1")):
        with pytest.raises(ValueError, match=r"frames are .*; give uint8 \[B, F, H, W, 3\]"):
            model.encode(wrong)


def test_decoding_in_chunks_equals_the_whole(model, monkeypatch):
    shape = model.latent_shape(SIZE, 21)
    latents = jax.random.normal(jax.random.key(0), (2, *shape))
    (whole,) = model.decode(latents)
    monkeypatch.setattr(frame_coder, "WHOLE_DECODE", 1)
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


network = jax.jit(DiT(DIT_CONFIG).apply)


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
        return np.asarray(network({"params": model.params["dit"]}, seen, levels, text))

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
        ({"seed": 1.5}, "seed 1.5 is out of range; use a whole one"),
        ({"prompt": None}, "the prompt is None: give a text, or a list of texts"),
        ({"prompt": [PROMPT, 5]}, "the prompt is 5: give a text"),
        ({"prompt": "circle " * 20}, "prompt takes 21 tokens, and the model reads 8; shorten"),
        ({"prompt": []}, "no prompt in the list"),
        ({"given": [Given(np.zeros((1, 2, 2, 4)), 0)]}, "encode them at the clip's own size"),
        (
            {"given": [Given(np.zeros((1, 2, 4, 4)), 0, [0.1, 0.2])]},
            "2 strengths do not fit 1 late",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**{"prompt": PROMPT, **arguments})


def test_the_facade_can_be_listed_and_a_model_shown():
    assert set(sora_jax.__all__) <= set(dir(sora_jax))


def test_a_model_is_shown_without_its_parameters(model):
    assert len(repr(model)) < 3000


def test_saving_writes_what_the_suffix_says(clip, tmp_path):
    sora_jax.save(clip, tmp_path / "clip.mp4", fps=8)
    sora_jax.save(clip[0], tmp_path / "image.png")
    sora_jax.save(iter([clip[:2], clip[2:]]), tmp_path / "pieces.mp4", fps=8)
    assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "clip.mp4").read_bytes()
    info = probe(tmp_path / "clip.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (FRAMES, *SIZE, 8)
    np.testing.assert_array_equal(decode(tmp_path / "image.png")[0], clip[0])
