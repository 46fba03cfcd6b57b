"""From one video to another: connected, looped, led over where a way is known, else dissolved."""

import dataclasses

import numpy as np
import pytest

import sora_jax
from sora_jax import passages, seams
from sora_jax.seams import jump
from tests.noise_videos import FPS, FRAMES, distance, frames, through_vae
from tests.tiny_model import PROMPT, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sora_jax.load(write_model(tmp_path_factory.mktemp("model"), frames=FRAMES))


@pytest.mark.parametrize("seamless", [np.inf, 0.0], ids=["led", "dissolved"])
@pytest.mark.parametrize("latents", [1, 2, 3, 4, 9])
def test_two_videos_are_connected_over_any_duration(model, monkeypatch, latents, seamless):
    monkeypatch.setattr(passages, "_SEAMLESS", seamless)
    first, second = frames(9), frames(10, seed=1)
    both = sora_jax.connect(model, first, second, PROMPT, latents * 4 / FPS)
    assert len(both) == 9 + 4 * latents + 10
    np.testing.assert_array_equal(both[:9], first)
    np.testing.assert_array_equal(both[-10:], second)
    passage = both[9:-10]
    other = sora_jax.connect(model, first, frames(10, seed=2), PROMPT, latents * 4 / FPS)[9:-10]
    assert distance(passage[-4:], other[-4:]) > 0.1, "the second video does not matter"
    other = sora_jax.connect(model, frames(9, seed=3), second, PROMPT, latents * 4 / FPS)[9:-10]
    assert distance(passage[:4], other[:4]) > 0.1, "the first video does not matter"


def test_a_loop_is_the_passage_from_a_video_to_itself(model):
    video = frames(12)
    looped = sora_jax.loop(model, video, PROMPT, 1.0)
    np.testing.assert_array_equal(looped, sora_jax.connect(model, video, video, PROMPT, 1.0)[:-12])


def test_a_way_that_is_known_lies_between_the_videos_frame_by_frame(model, monkeypatch):
    """A sampler that knows the truth between two parts of a video: no frame is shifted."""
    whole = frames(29)
    truth = np.asarray(model.encode(whole[None, 4:])[0])
    shown = through_vae(model, whole[4:])

    def recall(self, prompt, *, given, **_):
        assert [(piece.start, len(piece.latents)) for piece in given] == [(0, 2), (4, 1)]
        np.testing.assert_allclose(given[0].latents, truth[:2], atol=1e-4)
        return truth[None, :5]

    monkeypatch.setattr(passages, "_SEAMLESS", np.inf)
    monkeypatch.setattr(type(model), "sample_latents", recall)
    monkeypatch.setattr(seams, "FADE", 0)
    made = sora_jax.connect(model, whole[:9], whole[17:], PROMPT, 1.0)[9:17]
    # The decoder's first look back at what is given later moves the last pixels a little.
    near = [distance(made, shown[5 + shift : 13 + shift]) for shift in (-1, 0, 1)]
    assert near[1] < 1.0 < min(near[0], near[2])


def test_videos_with_no_way_between_them_dissolve(model, monkeypatch):
    first, second = frames(9), frames(9, seed=1)
    monkeypatch.setattr(passages, "_SEAMLESS", np.inf)
    led = sora_jax.connect(model, first, second, PROMPT, 1.0, seed=3)
    monkeypatch.undo()
    assert max(jump(led, 9), jump(led, 17)) > 1.5, "an untrained model knows no way"
    whole = sora_jax.connect(model, first, second, PROMPT, 1.0, seed=3)
    onwards = sora_jax.extend(model, first, PROMPT, 1.0, seed=3)[9:]
    towards = sora_jax.extend(model, second, PROMPT, -1.0, seed=3)[:8]
    time = np.array([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1]).reshape(-1, 1, 1, 1)
    share = 3 * time**2 - 2 * time**3
    np.testing.assert_allclose(whole[9:17], (1 - share) * onwards + share * towards, atol=1)
    # A way without a jump is taken as it is.
    monkeypatch.setattr(passages, "jumps", lambda video: np.full(len(video) - 1, 1.4))
    np.testing.assert_array_equal(sora_jax.connect(model, first, second, PROMPT, 1.0, seed=3), led)


@pytest.mark.parametrize(
    ("prompts", "tokens", "read"),
    [
        (("a circle.", "a circle."), 64, ["a circle."]),
        (("a circle.", "a square"), 64, ["a circle, then a square", "a circle.", "a square"]),
        (("a circle.", "a square"), 8, ["a square", "a circle."]),
    ],
    ids=["one", "two", "too long together"],
)
def test_each_video_may_have_a_prompt_of_its_own(model, monkeypatch, prompts, tokens, read):
    seen = []
    model = dataclasses.replace(model, settings=model.settings.override(text_length=tokens))

    def sample(self, prompt, **options):
        seen.append(prompt)
        return np.zeros((1, 5, 2, 4, 4), np.float32)

    monkeypatch.setattr(type(model), "sample_latents", sample)
    monkeypatch.setattr(passages, "jumps", lambda video: np.full(len(video) - 1, 2.0))
    prompt = prompts[0] if prompts[0] == prompts[1] else prompts
    sora_jax.connect(model, frames(9), frames(9), prompt, 1.0)
    assert list(dict.fromkeys(seen)) == read


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("connect", (frames(9), frames(9), PROMPT, float("nan")), "nan seconds are out of range"),
        ("connect", (frames(9), frames(9)[:, :, :16], PROMPT, 1.0), "sizes .* differ: resize"),
        ("connect", (frames(9), frames(9), PROMPT, 0.2), "hold no latent frame of 0.5 s"),
        ("connect", (frames(9), frames(3), PROMPT, 1.0), "second video has 3 frames"),
        ("connect", (frames(9), frames(9), ("circle " * 20, PROMPT), 1.0), "takes 21 tokens"),
        ("connect", (frames(9), frames(9), ["a", "b", "c"], 1.0), "3 prompts for two videos"),
        ("loop", (frames(9), ("a", "b"), 1.0), "so give one text"),
    ],
)
def test_what_cannot_be_connected_is_refused(model, task, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(sora_jax, task)(model, *arguments)
