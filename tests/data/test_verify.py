"""The verifier reads rendered clips right, and noise, blobs and wrong clips wrong."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from sora_jax.buckets import Bucket
from sora_jax.data.worlds import scenes, shapes, verify

BUCKETS = [Bucket(f, h, w) for f in (1, 9, 17, 33) for h, w in ((64, 64), (64, 96), (96, 64))]
CLIPS = [b for b in BUCKETS if b.frames in (9, 17)]


def draw_scenes(count: int, buckets=BUCKETS, seed: int = 0, two_sprites: float = 0.25):
    source = shapes.Shapes(count, buckets, seed=seed, two_sprites=two_sprites)
    return [source.scene(i) for i in range(count)]


def uint8(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.round(frames), 0, 255).astype(np.uint8)


def worn(frames: np.ndarray, rng: np.random.Generator, sigma: float = 0.8, noise: float = 8.0):
    blurred = ndimage.gaussian_filter(frames.astype(np.float32), (0, sigma, sigma, 0))
    return uint8(blurred + rng.normal(0, noise, frames.shape))


def rate(clips) -> dict[str, float]:
    """Share of (frames, expected) pairs that each entry of check() calls right."""
    checks = [verify.check(frames, expected) for frames, expected in clips]
    return {name: np.mean([c[name] for c in checks]) for name in checks[0]}


def test_rendered_clips_are_right():
    found = rate((scenes.render(s), s) for s in draw_scenes(300))
    assert min(found.values()) >= 0.99, found


def test_blurred_noisy_clips_are_right():
    rng = np.random.default_rng(0)
    found = rate((worn(scenes.render(s), rng), s) for s in draw_scenes(100, seed=1))
    assert min(found.values()) >= 0.97, found


def test_recoloured_clips_are_right():
    rng = np.random.default_rng(0)

    def pale(frames):
        grey = frames.mean(-1, keepdims=True)
        return worn(20 + 0.85 * (grey + 0.75 * (frames - grey)), rng, noise=5)

    found = rate((pale(scenes.render(s)), s) for s in draw_scenes(40, seed=2))
    assert found["all"] >= 0.95, found


def test_another_size_of_canvas_is_right():
    buckets = [Bucket(9, 32, 48), Bucket(9, 128, 128), Bucket(5, 80, 112)]
    found = rate((scenes.render(s), s) for s in draw_scenes(30, buckets))
    assert min(found.values()) >= 0.96, found


def test_reading_measures_positions_and_sizes():
    for scene in draw_scenes(12, CLIPS, seed=3, two_sprites=0.0):
        reading = verify.read(worn(scenes.render(scene), np.random.default_rng(0)))
        assert reading.background == scene.background
        (sprite,) = reading.sprites
        truth = scenes.track(scene.sprites[0], scene.frames)
        canvas = np.array((scene.width, scene.height))
        error = (sprite.centres - truth + canvas / 2) % canvas - canvas / 2
        assert np.abs(error).max() < 1.0
        assert sprite.radius == pytest.approx(scenes.SIZES[scene.sprites[0].size], rel=0.1)
        assert sprite.fit > 0.85


def test_noise_is_never_right():
    rng = np.random.default_rng(0)

    def white(shape):
        return rng.integers(0, 256, shape, dtype=np.uint8)

    def cloudy(shape):
        cloud = ndimage.gaussian_filter(rng.normal(size=shape), (2, 5, 5, 0), mode="wrap")
        return uint8(128 + 50 * cloud / cloud.std())

    def grainy(shape):
        return uint8(16 + rng.normal(0, 40, shape))

    def flat(shape):
        return np.full(shape, 128, np.uint8)

    for make in (white, cloudy, grainy, flat):
        clips = [(make((s.frames, s.height, s.width, 3)), s) for s in draw_scenes(12)]
        assert rate(clips)["all"] == 0, make


def test_random_blobs_seldom_have_a_shape():
    rng = np.random.default_rng(0)
    shaped = []
    while len(shaped) < 60:
        cloud = ndimage.gaussian_filter(rng.normal(size=(64, 64)), rng.uniform(3, 7, 2))
        labels, _ = ndimage.label(cloud > np.quantile(cloud, 0.88))
        area = np.bincount(labels.ravel())[1:]
        if not 150 < area.max() < 600:
            continue
        frame = np.empty((1, 64, 64, 3), np.uint8)
        frame[:] = scenes.BACKGROUNDS["black"]
        frame[0, labels == area.argmax() + 1] = scenes.COLOURS["green"]
        shaped.append(any(s.shape for s in verify.read(frame).sprites))
    assert np.mean(shaped) <= 0.15


def test_motion_that_is_not_the_one_asked_for_is_wrong():
    rng = np.random.default_rng(0)

    def still(frames):
        return np.repeat(frames[:1], len(frames), 0)

    def jittered(frames):
        return np.stack([np.roll(frames[0], rng.integers(-3, 4, 2), (0, 1)) for _ in frames])

    def diagonal(frames):
        return np.stack([np.roll(frames[0], (i, i), (0, 1)) for i in range(len(frames))])

    def backwards(frames):
        return frames[::-1]

    def shuffled(frames):
        return frames[rng.permutation(len(frames))]

    for change in (still, jittered, diagonal, backwards, shuffled):
        found = rate((change(scenes.render(s)), s) for s in draw_scenes(12, CLIPS, seed=4))
        assert found["direction"] == 0 and found["all"] == 0, change
        assert found["colour"] == 1 and found["shape"] >= 0.95, change


@pytest.mark.parametrize("name", ["colour", "shape", "direction", "size"])
def test_a_wrong_attribute_is_named(name):
    vocabulary = {
        "colour": scenes.COLOURS,
        "shape": scenes.SHAPES,
        "direction": scenes.DIRECTIONS,
        "size": scenes.SIZES,
    }[name]
    for scene in draw_scenes(8, CLIPS, seed=5, two_sprites=0.0):
        frames = scenes.render(scene)
        (sprite,) = scene.sprites
        for other in vocabulary:
            check = verify.check(frames, [dataclasses.replace(sprite, **{name: other})])
            wrong = {"colour", "shape", "direction", "size"} - {k for k, v in check.items() if v}
            assert wrong == (set() if other == getattr(sprite, name) else {name})
            assert check["all"] == (not wrong - {"size"})


def test_attributes_swapped_between_two_sprites_are_wrong():
    pairs = [
        s
        for s in draw_scenes(40, CLIPS, seed=6, two_sprites=1.0)
        if s.sprites[0].shape != s.sprites[1].shape
    ]
    for scene in pairs[:12]:
        a, b = scene.sprites
        swapped = (dataclasses.replace(a, shape=b.shape), dataclasses.replace(b, shape=a.shape))
        check = verify.check(scenes.render(scene), swapped)
        assert check["colour"] and not check["shape"] and not check["all"]


@pytest.mark.parametrize("same_colour", [False, True])
def test_a_second_object_nobody_asked_for_is_wrong(same_colour):
    for scene in draw_scenes(10, CLIPS, seed=7, two_sprites=0.0):
        (sprite,) = scene.sprites
        extra = dataclasses.replace(
            sprite,
            colour=sprite.colour if same_colour else ("cyan", "red")[sprite.colour == "cyan"],
            size="small",
            x=sprite.x + scene.width / 2,
            y=sprite.y + scene.height / 2,
        )
        frames = scenes.render(dataclasses.replace(scene, sprites=(sprite, extra)))
        check = verify.check(frames, scene)
        assert not check["count"] and not check["all"]
        assert verify.check(scenes.render(scene), [sprite])["all"]


def test_an_object_that_vanishes_is_wrong():
    for scene in draw_scenes(10, CLIPS, seed=8):
        frames = scenes.render(scene)
        frames[scene.frames // 2 :] = scenes.BACKGROUNDS[scene.background]
        assert not verify.check(frames, scene)["all"]
        sprite = scene.sprites[0]
        assert not verify.check(frames, [sprite])["shape"]


def test_frames_of_another_type_are_refused():
    with pytest.raises(ValueError, match="float32"):
        verify.read(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[64, 64, 3\]"):
        verify.read(np.zeros((64, 64, 3), np.uint8))
