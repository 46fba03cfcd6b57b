"""The rendered world: exact truth, exact shapes, a split that never leaks, a torus."""

import dataclasses
import math

import numpy as np
import pytest

from sora_jax.buckets import Bucket
from sora_jax.data.worlds import scenes, shapes

CANVASES = ((64, 64), (64, 96), (96, 64))
BUCKETS = [Bucket(f, h, w) for f in (1, 9, 17) for h, w in CANVASES]


def one(frames=17, height=64, width=64, background="black", **attributes) -> scenes.Scene:
    values = {
        "colour": "red",
        "shape": "circle",
        "size": "small",
        "direction": "right",
        "x": 32.0,
        "y": 32.0,
        "speed": 1.5,
    } | attributes
    return scenes.Scene((scenes.Sprite(**values),), background, frames, height, width)


def amount(frames: np.ndarray, colour: str, background: str) -> np.ndarray:
    """How much of the colour each pixel holds, float [F, H, W]."""
    base = np.array(scenes.BACKGROUNDS[background], float)
    line = scenes.COLOURS[colour] - base
    return (frames - base) @ line / (line @ line)


def test_every_clip_has_its_own_buckets_shape_and_the_shape_it_is_read_at():
    source = shapes.Shapes(60, BUCKETS, seed=1)
    assert source.shapes.dtype == np.int32 and source.shapes.shape == (60, 3)
    for index in range(len(source)):
        bucket = Bucket(*source.shapes[index].tolist())
        assert bucket in BUCKETS
        frames = source.read(index, bucket, np.random.default_rng(0))["frames"]
        assert frames.dtype == np.uint8
        assert frames.shape == (bucket.frames, bucket.height, bucket.width, 3)
        assert np.array_equal(frames, scenes.render(source.scene(index)))
    odd = Bucket(5, 40, 72)
    assert source.read(3, odd, np.random.default_rng(0))["frames"].shape == (5, 40, 72, 3)


def test_a_clip_depends_on_seed_split_and_index_only():
    def of(seed=0, split="train"):
        source = shapes.Shapes(20, BUCKETS, seed=seed, split=split)
        return [source.scene(i, BUCKETS[4]) for i in range(20)]

    assert of() == of()
    assert len(set(of() + of(seed=1) + of(split="held_out"))) == 60
    source = shapes.Shapes(20, BUCKETS)
    clips = [source.read(2, BUCKETS[4], np.random.default_rng(s)) for s in range(12)]
    assert all(np.array_equal(c["frames"], clips[0]["frames"]) for c in clips)
    assert len({c["captions"]["short"] for c in clips}) == 1
    assert len({c["captions"]["detailed"] for c in clips}) > 1


def test_weights_mix_the_buckets():
    source = shapes.Shapes(2000, BUCKETS[:3], weights=[3, 0, 1])
    share = [(source.shapes == (b.frames, b.height, b.width)).all(1).mean() for b in BUCKETS[:3]]
    assert share[1] == 0
    assert share[0] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("frames", [1, 9])
def test_training_never_shows_a_held_out_combination_and_held_out_shows_only_those(frames):
    held_out = set(scenes.held_out_combinations(images=frames == 1))
    assert len(held_out) == (36 if frames == 1 else 144)
    every = math.prod(map(len, (scenes.COLOURS, scenes.SHAPES, scenes.SIZES, scenes.BACKGROUNDS)))
    every *= 1 if frames == 1 else len(scenes.DIRECTIONS)
    seen = {}
    for split in scenes.SPLITS:
        rng = np.random.default_rng(0)
        drawn = [scenes.draw_scene(rng, Bucket(frames, 64, 64), split, 0.5) for _ in range(5000)]
        seen[split] = {
            scenes.Combination(s.colour, s.shape, s.size, s.direction, scene.background)
            for scene in drawn
            for s in scene.sprites
        }
    assert seen["held_out"] == held_out
    assert not seen["train"] & held_out
    assert len(seen["train"]) == every - len(held_out)


def test_motion_comes_round_the_torus():
    for direction in scenes.DIRECTIONS:
        for shape in scenes.SHAPES:
            frames = scenes.render(one(33, direction=direction, shape=shape, speed=2.0, x=20.3))
            assert np.array_equal(frames[0], frames[32])
            assert not np.array_equal(frames[0], frames[16])
            mass = amount(frames, "red", "black").sum((1, 2))
            assert np.ptp(mass) < 0.02 * mass.mean()


@pytest.mark.parametrize("shape", scenes.SHAPES)
@pytest.mark.parametrize("size", scenes.SIZES)
def test_pixels_hold_the_true_area_and_sub_pixel_centre(shape, size):
    scene = one(9, 96, 128, shape=shape, size=size, x=40.3, y=51.6, speed=1.37)
    alpha = amount(scenes.render(scene), "red", "black")
    area = alpha.sum((1, 2))
    radius = scenes.SIZES[size] * 1.5
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=0.03)
    x = (alpha.sum(1) @ (np.arange(128) + 0.5)) / area
    y = (alpha.sum(2) @ (np.arange(96) + 0.5)) / area
    truth = scenes.track(scene.sprites[0], 9)
    np.testing.assert_allclose(np.stack([x, y], 1), truth, atol=0.15)
    assert truth[8, 0] - truth[0, 0] == pytest.approx(8 * 1.37)


def test_sprites_start_inside_the_frame_and_apart():
    rng = np.random.default_rng(0)
    for number in range(120):
        height, width = CANVASES[number % 3]
        scene = scenes.draw_scene(rng, Bucket(1, height, width), two_sprites=1.0)
        single = [dataclasses.replace(scene, sprites=(s,)) for s in scene.sprites]
        alphas = [
            amount(scenes.render(s), s.sprites[0].colour, s.background)[0] > 0.5 for s in single
        ]
        for mask in alphas:
            assert not (mask[0].any() and mask[-1].any())
            assert not (mask[:, 0].any() and mask[:, -1].any())
        assert (alphas[0] & alphas[1]).sum() < 0.15 * min(a.sum() for a in alphas)
        assert scene.sprites[0].colour != scene.sprites[1].colour


def test_speed_and_size_scale_with_the_short_side():
    rng = np.random.default_rng(0)
    for height, width in ((32, 48), (128, 256)):
        factor = min(height, width) / 64
        scene = scenes.draw_scene(rng, Bucket(9, height, width), two_sprites=0.0)
        sprite = scene.sprites[0]
        assert factor <= sprite.speed <= 2 * factor
        area = amount(scenes.render(scene), sprite.colour, scene.background).sum((1, 2))
        np.testing.assert_allclose(
            area, np.pi * (scenes.SIZES[sprite.size] * factor) ** 2, rtol=0.05
        )


def test_the_first_sprite_is_in_front():
    front, back = one().sprites[0], one(colour="blue", size="large").sprites[0]
    frames = scenes.render(scenes.Scene((front, back), "white", 1, 64, 64))
    assert tuple(frames[0, 32, 32]) == scenes.COLOURS["red"]
    assert tuple(frames[0, 32, 42]) == scenes.COLOURS["blue"]


def test_captions_say_what_is_shown():
    rng = np.random.default_rng(0)
    scene = one()
    two = dataclasses.replace(scene, sprites=scene.sprites + one(colour="blue").sprites)
    image = dataclasses.replace(one(1, direction=None), sprites=two.sprites)
    assert shapes.captions(scene, rng)["short"] == "a red circle moves right"
    expected = "a red circle moves right and a blue circle moves right"
    assert shapes.captions(two, rng)["short"] == expected
    assert shapes.captions(image, rng)["short"] == "a red circle and a blue circle"
    for _ in range(30):
        clip, still = (shapes.captions(s, rng)["detailed"] for s in (two, image))
        for text in (clip, still):
            assert text[0].isupper() and text.endswith(".")
            assert "a small red circle" in text.lower() and "small blue circle" in text.lower()
            assert "black" in text and text.lower().index("red") < text.lower().index("blue")
        assert clip.count(" right") == 2 and "move" not in still and "right" not in still


def test_given_combinations_can_be_placed():
    combination = scenes.held_out_combinations()[5]
    scene = scenes.place(np.random.default_rng(0), Bucket(9, 64, 96), [combination])
    sprite = scene.sprites[0]
    assert combination == (
        sprite.colour,
        sprite.shape,
        sprite.size,
        sprite.direction,
        scene.background,
    )
    with pytest.raises(ValueError, match="one or two"):
        scenes.place(np.random.default_rng(0), Bucket(9, 64, 96), [])


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"'test'.*train"):
        shapes.Shapes(10, BUCKETS, split="test")
    with pytest.raises(ValueError, match="weights"):
        shapes.Shapes(10, BUCKETS, weights=[1.0])
    with pytest.raises(ValueError, match="at least one Bucket"):
        shapes.Shapes(10, [])
    with pytest.raises(ValueError, match="'orange'"):
        one(colour="orange")
    with pytest.raises(IndexError, match="clip 10 of 10"):
        shapes.Shapes(10, BUCKETS).scene(10)
