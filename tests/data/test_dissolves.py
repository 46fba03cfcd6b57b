"""Dissolves: what they mix, which clips have one, and what their captions say."""

import numpy as np
import pytest

from sora_jax.buckets import Bucket
from sora_jax.data.worlds.dissolves import LENGTHS, Dissolves
from sora_jax.data.worlds.scenes import is_held_out, render
from sora_jax.data.worlds.shapes import Shapes

LONG, SHORT = Bucket(33, 64, 96), Bucket(17, 64, 64)


@pytest.fixture(scope="module")
def source():
    return Dissolves(Shapes(300, [LONG, SHORT], seed=3), 0.5)


def two_scenes(source):
    return [i for i in range(len(source)) if len(source.scenes(i)) == 2]


def test_long_clips_of_one_sprite_dissolve_as_often_as_asked(source):
    long = [
        i
        for i in range(len(source))
        if source.scenes(i)[0].frames == 33 and len(source.scenes(i)[0].sprites) == 1
    ]
    found = two_scenes(source)
    assert set(found) <= set(long)
    assert len(found) / len(long) == pytest.approx(0.5, abs=0.12)


def test_the_ends_of_a_clip_are_its_two_scenes(source):
    lengths = set()
    for i in two_scenes(source)[:40]:
        first, second = (render(scene) for scene in source.scenes(i))
        frames = source.read(i, LONG, np.random.default_rng(0))["frames"]
        is_first = (frames == first).all(axis=(1, 2, 3))
        is_second = (frames == second).all(axis=(1, 2, 3))
        assert is_first[:6].all() and is_second[-6:].all()
        assert not (is_first | is_second).all()
        lengths.add(int((~is_first & ~is_second).sum()))
    assert min(lengths) >= LENGTHS[0] - 1 and max(lengths) <= LENGTHS[1]


def test_captions_tell_both_scenes_unless_they_are_the_same(source):
    same = 0
    for i in two_scenes(source):
        first, second = (scene.sprites[0] for scene in source.scenes(i))
        caption = source.captions(i)
        assert first.colour in caption["short"] and second.colour in caption["short"]
        if (first.colour, first.shape, first.direction) == (
            second.colour,
            second.shape,
            second.direction,
        ):
            same += 1
            assert "then" not in caption["short"] + caption["detailed"]
        else:
            before, _, after = caption["detailed"].partition(" Then ")
            assert first.colour in before and second.colour in after
            assert caption["short"].count(", then ") == 1
    assert 0.3 < same / len(two_scenes(source)) < 0.7


def test_both_scenes_belong_to_the_split(source):
    held_out = Dissolves(Shapes(100, [LONG], seed=1, split="held_out"), 0.5)
    for one, expected in ((source, False), (held_out, True)):
        for i in two_scenes(one):
            for scene in one.scenes(i):
                sprite = scene.sprites[0]
                triple = (sprite.colour, sprite.shape, sprite.direction)
                assert is_held_out(*triple, scene.background) == expected


def test_clips_are_the_same_each_time_and_the_worlds_where_nothing_dissolves(source):
    world = Shapes(300, [LONG, SHORT], seed=3)
    assert len(source) == len(world) and source.fps == world.fps
    np.testing.assert_array_equal(source.shapes, world.shapes)
    changed = two_scenes(source)
    for i in [*changed[:3], *(i for i in range(10) if i not in changed)]:
        bucket = Bucket(*(int(v) for v in world.shapes[i]))
        once, again, plain = (
            one.read(i, bucket, np.random.default_rng(0)) for one in (source, source, world)
        )
        np.testing.assert_array_equal(once["frames"], again["frames"])
        assert (i in changed) == (once["frames"] != plain["frames"]).any()
        if i not in changed:
            assert once["captions"] == plain["captions"]
            assert source.captions(i) == world.captions(i)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"share of 1.5 dissolves must lie in 0 to 1"):
        Dissolves(Shapes(1, [LONG]), 1.5)
