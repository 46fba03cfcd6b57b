"""Videos without an end: rolled along in a window, and closed to a ring."""

import itertools

import numpy as np
import pytest

import sora_jax
from sora_jax import generation
from sora_jax.diffusion.conditioning import staircase
from tests.tiny_model import PROMPT, SIZE, write_model

FPS, FRAMES = 8, 17


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sora_jax.load(write_model(tmp_path_factory.mktemp("model"), frames=FRAMES, steps=4))


@pytest.mark.parametrize("seconds", [0.125, 1.0, 4.0])
def test_a_long_video_has_the_duration_asked_for(model, seconds):
    pieces = list(sora_jax.long_video(model, PROMPT, seconds))
    video = np.concatenate(pieces)
    assert video.shape == (round(seconds * FPS), SIZE[1], SIZE[0], 3)
    assert all(len(piece) <= 4 for piece in pieces)
    assert video.std() > 5


def test_a_longer_video_begins_as_a_shorter_one_and_goes_on_differently(model):
    short, long = (
        np.concatenate(list(sora_jax.long_video(model, PROMPT, seconds))) for seconds in (1.0, 8.0)
    )
    np.testing.assert_array_equal(short, long[: len(short)])
    windows = long[1:61].reshape(5, 12, *long.shape[1:]).astype(int)
    for a, b in itertools.combinations(windows, 2):
        assert np.abs(a - b).mean() > 0.5


def test_what_is_to_be_avoided_counts(model):
    for make in (
        lambda **more: next(sora_jax.long_video(model, PROMPT, 1.0, **more)),
        lambda **more: sora_jax.endless_loop(model, PROMPT, 1.0, **more),
    ):
        assert (make() != make(negative="a blue square")).any()


def test_a_window_never_sees_a_frame_at_a_level_that_it_has_not(model, monkeypatch):
    """Each call goes on from the levels where the last one ended; what is new is noise."""
    calls = []
    advance = type(model).advance

    def record(self, text, x, levels, *rest, **options):
        calls.append((np.asarray(x), np.asarray(levels)))
        return advance(self, text, x, levels, *rest, **options)

    monkeypatch.setattr(type(model), "advance", record)
    list(sora_jax.long_video(model, PROMPT, 3.0))
    (_, first), (_, second), *_ = calls
    assert (first[0] == 1).all() and first[-1, 0] == 0
    np.testing.assert_allclose(second[0], first[-1], atol=1e-6)
    np.testing.assert_allclose(second[-1, 1:], second[0, :-1], atol=1e-6)
    assert second[-1, 1] == 0 and second[0, -1] == 1
    shift = model.shift((5, 2, 4, 4))
    np.testing.assert_allclose(second[0], staircase(5, 1, 0.0, shift), atol=1e-6)
    # Two windows show the same frames, one place further along.
    assert all((a[1] == b[1]).all() for a, b in itertools.pairwise(calls[1:]))
    assert all(0.5 < x[:, -1].std() < 1.5 for x, _ in calls)


def test_a_seed_out_of_range_is_refused_at_once(model):
    with pytest.raises(ValueError, match="seed -1 is out of range"):
        sora_jax.long_video(model, PROMPT, 2.0, seed=-1)


def test_a_long_video_is_made_while_it_is_asked_for(model, monkeypatch):
    """Of an hour, only what has been taken, so that memory does not grow with the duration."""
    windows = []
    advance = type(model).advance

    def count(self, *arguments, **options):
        windows.append(1)
        return advance(self, *arguments, **options)

    monkeypatch.setattr(type(model), "advance", count)
    pieces = sora_jax.long_video(model, PROMPT, 3600.0)
    taken = [next(pieces) for _ in range(4)]
    assert len(windows) <= 4 and sum(len(piece) for piece in taken) == 1 + 3 * 4


def test_rolling_on_compiles_nothing(model):
    np.concatenate(list(sora_jax.long_video(model, PROMPT, 2.0)))
    before = generation.generate._cache_size(), generation.decode._cache_size()
    np.concatenate(list(sora_jax.long_video(model, "a blue square", 6.0, seed=3)))
    assert (generation.generate._cache_size(), generation.decode._cache_size()) == before


@pytest.mark.parametrize("latents", [2, 5, 8])
def test_a_loop_from_text_has_whole_latent_frames(model, latents):
    loop = sora_jax.endless_loop(model, PROMPT, latents * 4 / FPS)
    assert loop.shape == (4 * latents, SIZE[1], SIZE[0], 3)
    assert loop.std() > 5


def test_a_loop_is_solved_as_a_ring_and_decoded_after_a_round(model, monkeypatch):
    latents = np.random.default_rng(0).normal(size=(1, 8, 2, 4, 4)).astype(np.float32)
    asked = []

    def advance(self, text, x, levels, settings, **options):
        asked.append(options)
        return latents

    monkeypatch.setattr(type(model), "advance", advance)
    loop = sora_jax.endless_loop(model, PROMPT, 4.0)
    assert asked == [{"ring": 5}]

    def rounds(count):
        """The last of so many rounds, but the frames that the first lacks."""
        frames = np.concatenate(list(model.decode(np.tile(latents, (1, count, 1, 1, 1)))), axis=1)
        return frames[0, -29:].astype(int)

    once, ring = np.abs(rounds(1) - rounds(5)).mean(), np.abs(loop[-29:] - rounds(5)).mean()
    assert ring < 0.25 * once


@pytest.mark.parametrize(
    ("task", "seconds", "message"),
    [
        ("long_video", float("inf"), "inf seconds are out of range; use up to 86400"),
        ("endless_loop", float("nan"), "nan seconds are out of range"),
        ("long_video", 0.01, "0.01 seconds hold no frame at 8 a second"),
        ("endless_loop", 0.5, "0.5 seconds hold 1 latent frames of 0.5 s; .* at least two"),
    ],
)
def test_what_cannot_be_made_is_refused(model, task, seconds, message):
    with pytest.raises(ValueError, match=message):
        getattr(sora_jax, task)(model, PROMPT, seconds)


def test_a_model_of_very_short_clips_cannot_roll(tmp_path):
    short = sora_jax.load(write_model(tmp_path, frames=5))
    with pytest.raises(ValueError, match="makes 5 frames, 2 latent frames: too few to roll"):
        sora_jax.long_video(short, PROMPT, 2.0)


def test_a_ring_is_cut_at_the_same_places_when_steps_are_taken_one_by_one(model, monkeypatch):
    whole = sora_jax.endless_loop(model, PROMPT, 4.0)
    monkeypatch.setattr(generation, "_SLOW", 0)
    steps = sora_jax.endless_loop(model, PROMPT, 4.0)
    assert np.abs(steps.astype(int) - whole).max() <= 1
