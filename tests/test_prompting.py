"""Images and videos as prompts: what is given stays, and decides what is made beside it."""

import numpy as np
import pytest

import sora_jax
from sora_jax import generation, passages, windows
from tests.noise_videos import FPS, FRAMES, distance, frames, through_vae
from tests.tiny_model import PROMPT, SIZE, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sora_jax.load(write_model(tmp_path_factory.mktemp("model"), frames=FRAMES))


def test_an_animated_image_is_the_first_frame_and_matters_to_the_others(model):
    image, other = frames(1)[0], frames(1, seed=1)[0]
    clip = sora_jax.animate(model, image, PROMPT)
    assert clip.shape == (FRAMES, SIZE[1], SIZE[0], 3)
    np.testing.assert_array_equal(clip[0], image)
    assert distance(clip[1:], sora_jax.animate(model, other, PROMPT)[1:]) > 0.5
    both = sora_jax.animate(model, image, [PROMPT, "a blue square"], frames=5)
    assert both.shape == (2, 5, SIZE[1], SIZE[0], 3)
    np.testing.assert_array_equal(both[:, 0], np.stack([image, image]))


@pytest.mark.parametrize("seconds", [1 / FPS, 0.5, 2.0, 4.1])
def test_a_video_is_extended_by_what_is_asked_for_at_either_end(model, seconds):
    video = frames(12)
    added = round(seconds * FPS)
    after = sora_jax.extend(model, video, PROMPT, seconds)
    before = sora_jax.extend(model, video, PROMPT, -seconds)
    assert len(after) == len(before) == 12 + added
    np.testing.assert_array_equal(after[:12], video)
    np.testing.assert_array_equal(before[-12:], video)


def test_windows_of_an_extension_differ_and_the_near_end_decides(model):
    long = sora_jax.extend(model, frames(12), PROMPT, 3.0)[12:]
    first, second = long[:12], long[12:24]
    assert distance(first, second) > 0.5
    # Only the last five frames are looked at.
    other = frames(12)
    other[:7] = 255 - other[:7]
    np.testing.assert_array_equal(sora_jax.extend(model, other, PROMPT, 3.0)[12:], long)
    other = frames(12)
    other[7:] = 255 - other[7:]
    assert distance(sora_jax.extend(model, other, PROMPT, 3.0)[12:], long) > 0.5


def test_a_longer_extension_begins_as_a_shorter_one(model):
    short, long = (sora_jax.extend(model, frames(9), PROMPT, seconds) for seconds in (1.5, 3.0))
    np.testing.assert_allclose(short, long[: len(short)].astype(int), atol=1)
    short, long = (sora_jax.extend(model, frames(9), PROMPT, -seconds) for seconds in (0.5, 3.0))
    assert len(long) == 33 and len(short) == 13


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_an_edit_goes_from_the_input_to_something_new(model, count):
    video = frames(count)
    padded = video[np.minimum(np.arange(1 + -(-(count - 1) // 4) * 4), count - 1)]
    edits = [sora_jax.edit(model, video, PROMPT, s, steps=4) for s in (0.0, 0.3, 1.0)]
    assert all(edit.shape == video.shape for edit in edits)
    np.testing.assert_allclose(edits[0], through_vae(model, padded)[:count].astype(int), atol=1)
    made = model.sample(PROMPT, size=SIZE, frames=len(padded), steps=4)[:count]
    np.testing.assert_array_equal(edits[-1], made)
    assert all(distance(edit, edits[0]) > 0.05 for edit in edits[1:])


def test_strength_may_differ_by_frame(model):
    video = frames(9)
    edited = sora_jax.edit(model, video, PROMPT, [0.0] * 5 + [1.0] * 4)
    kept = through_vae(model, video)
    assert distance(edited[:5], kept[:5]) < 1 < distance(edited[5:], kept[5:])


def test_keyframes_appear_at_their_times(model):
    images = {0.0: frames(1)[0], 1.5: frames(1, seed=1)[0]}
    clip = sora_jax.from_keyframes(model, images, PROMPT)
    assert len(clip) == FRAMES
    first = through_vae(model, images[0.0][None])[0]
    np.testing.assert_allclose(clip[0], first.astype(int), atol=1)
    rough = sora_jax.from_keyframes(model, images, PROMPT, strength=0.5)
    assert distance(rough[0], first) > 1


@pytest.mark.parametrize(("seconds", "latent"), [(0.0, 0), (0.125, 1), (0.5, 1), (1.5, 3), (2, 4)])
def test_a_keyframe_lies_in_the_latent_frame_of_its_time(model, seconds, latent):
    """Frame i is in latent frame ceil(i / 4), and the latents there are those of a still."""
    image = frames(1)[0]
    given = []

    def sample(self, prompt, **options):
        given.extend(options["given"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "sample", sample)
        sora_jax.from_keyframes(model, {seconds: image}, PROMPT)
    (piece,) = given
    assert (piece.start, piece.strength) == (latent, 0.0)
    still = model.encode(np.repeat(image[None, None], 17, axis=1))[0]
    expected = still[:1] if latent == 0 else still[3:4]
    np.testing.assert_allclose(piece.latents, expected, atol=1e-4)


def test_what_is_made_lies_right_beside_what_is_given(model):
    """A sampler that knows the true latents of a longer video gives back its frames, in place."""
    whole = frames(29)
    truth = np.asarray(model.encode(whole[None])[0])
    shown = through_vae(model, whole)

    def recall(self, prompt, *, given, **_):
        """The five latent frames that begin with, or end in, what is given."""
        (piece,) = given
        count = len(piece.latents)
        error = [np.abs(truth[i : i + count] - piece.latents).mean() for i in range(9 - count - 1)]
        start = int(np.argmin(error)) - piece.start
        return truth[None, start : start + 5]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "sample_latents", recall)
        # The last five frames of a video that begins it are its two first latent frames.
        after = sora_jax.extend(model, whole[:5], PROMPT, 3.0)
    np.testing.assert_allclose(after[9:], shown[9:29].astype(int), atol=2)
    # What the VAE makes of the last given frame fades out over the four in between.
    error = whole[4].astype(int) - shown[4]
    for i, share in enumerate((0.8, 0.6, 0.4, 0.2)):
        expected = np.clip(shown[5 + i] + share * error, 0, 255)
        np.testing.assert_allclose(after[5 + i], expected, atol=3)


def test_what_leads_up_to_a_video_meets_it_as_the_vae_would_show_it(model):
    """Whatever is made before, the frame before the seam takes over most of the VAE's error."""
    video = frames(9)
    kept, seen = windows.encode_head(model, video, 2, "it"), []

    def decode(self, latents):
        seen.append(self.decode(latents))
        seen[0] = np.concatenate(list(seen[0]), axis=1)
        return seen[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "to_frames", decode)
        before = sora_jax.extend(model, video, PROMPT, -1.0)
    (all_frames,) = seen[0]
    end = len(all_frames) - 4 * len(kept)
    expected = all_frames[end - 1] + 0.8 * (video[0].astype(int) - all_frames[end])
    np.testing.assert_allclose(before[7], np.clip(expected, 0, 255), atol=1)


def test_windows_and_tasks_have_noise_of_their_own(model, monkeypatch):
    drawn = []
    noise = type(model).noise

    def record(self, seed, shape):
        drawn.append(np.asarray(noise(self, seed, shape)))
        return noise(self, seed, shape)

    monkeypatch.setattr(type(model), "noise", record)
    monkeypatch.setattr(passages, "_SEAMLESS", np.inf)
    model.sample_latents(PROMPT, size=SIZE)
    for seed in (0, 1):
        sora_jax.extend(model, frames(12), PROMPT, 3.0, seed=seed)
        sora_jax.extend(model, frames(12), PROMPT, -2.0, seed=seed)
        sora_jax.connect(model, frames(9), frames(9, seed=1), PROMPT, 1.0, seed=seed)
    pieces = [x.ravel()[:64] for x in drawn]
    assert len(pieces) == 1 + 2 * (2 + 2 + 1)
    assert len({piece.tobytes() for piece in pieces}) == len(pieces)


def test_a_windows_program_serves_every_task_of_its_length(model):
    sora_jax.extend(model, frames(9), PROMPT, 1.0)
    before = generation.generate._cache_size()
    sora_jax.extend(model, frames(9), "a blue square", -3.0, seed=5)
    sora_jax.connect(model, frames(9), frames(9, seed=1), PROMPT, 1.5)
    sora_jax.edit(model, frames(FRAMES), PROMPT, 0.4)
    sora_jax.from_keyframes(model, {1.0: frames(1)[0]}, PROMPT)
    assert generation.generate._cache_size() == before > 0


def test_a_model_of_very_short_clips_cannot_go_on(tmp_path):
    short = sora_jax.load(write_model(tmp_path, frames=5))
    with pytest.raises(ValueError, match="makes 5 frames, 2 latent frames: too few"):
        sora_jax.extend(short, frames(9), PROMPT, 1.0)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("animate", (frames(1)[0] / 255, PROMPT), "the image is float64; give uint8"),
        ("animate", ("first.png", PROMPT), r"the image is 'first.png'; give an array, uint8 .H, W"),
        ("animate", (frames(1), PROMPT), r"shape \(1, 16, 32, 3\); it must be \[H, W, 3\]"),
        ("animate", (np.zeros((16, 36, 3), np.uint8), PROMPT), "width 36 .* nearest are 32 and 40"),
        ("extend", (frames(9)[..., :1], PROMPT, 1.0), r"shape \(9, 16, 32, 1\); it must be"),
        ("extend", (frames(9), PROMPT, "2"), "seconds '2' are no number"),
        ("extend", (frames(9), PROMPT, float("inf")), "inf seconds are out of range"),
        ("from_keyframes", ({float("inf"): frames(1)[0]}, PROMPT), "inf seconds"),
        ("extend", (frames(9), PROMPT, 0.01), "less than a frame of 0.125 seconds"),
        ("extend", (frames(4), PROMPT, 1.0), "has 4 frames, and going on from its end takes 5"),
        ("extend", (frames(7), PROMPT, -1.0), "has 7 frames, and leading up .* takes 8"),
        ("extend", (frames(9), [PROMPT, PROMPT], 1.0), "so give one text"),
        ("endless_loop", ([PROMPT, PROMPT], 2.0), "so give one text"),
        ("long_video", ([PROMPT, PROMPT], 2.0), "so give one text"),
        ("enlarge", (frames(9), PROMPT, (36, 16)), "width 36 .* nearest are 32 and 40"),
        ("enlarge", (frames(9), PROMPT, (24, 8)), "is not smaller than .24, 8."),
        ("enlarge", (frames(9), PROMPT, (64, 64)), "are of different shapes"),
        ("edit", (frames(9), PROMPT, 1.1), "strength 1.1 must lie in 0"),
        ("edit", (frames(9), PROMPT, [0.5] * 8), "8 strengths do not fit 9 frames"),
        ("enlarge", (frames(9), PROMPT, 64), "size 64 must be .width, height."),
        ("from_keyframes", ({}, PROMPT), "no keyframe"),
        ("from_keyframes", ([frames(1)[0]], PROMPT), "no keyframe; give .* its time"),
        ("from_keyframes", ({0.0: None}, PROMPT), "the keyframe at 0.0 s is None; give an array"),
        ("from_keyframes", ({3.0: frames(1)[0]}, PROMPT), "at 3.0 s lies outside .* of 2.12 s"),
        ("from_keyframes", ({-1.0: frames(1)[0]}, PROMPT), "at -1.0 s lies outside"),
        (
            "from_keyframes",
            ({0.25: frames(1)[0], 0.5: frames(1)[0]}, PROMPT),
            "at 0.25 s and 0.5 s fall on one latent frame, which holds 0.5 s",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_cannot_be_done_is_refused(model, task, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(sora_jax, task)(model, *arguments)
