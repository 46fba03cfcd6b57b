"""Related clips are one group, and a group is on one side only."""

import pytest

from sora_jax.data.captions import Clip
from sora_jax.data.splits import group_clips, held_out_groups


def clip(name, **metadata):
    return Clip(name, None, {}, metadata)


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        (clip("a/shot_7.mp4"), clip("a/shot_7_tall.mp4"), True),
        (clip("a/shot_7_tall.mp4"), clip("a/shot_7_square.mp4"), True),
        (clip("a/shot_7_tall_720p.mp4"), clip("b/shot_7_tall.png"), True),
        (clip("a/shot_7.mp4"), clip("b/shot_7.webm"), True),
        (clip("shot_7.mp4"), clip("shot_7 720p.mp4"), True),
        (clip("kite.mp4"), clip("kite-crop.mp4"), True),
        (clip("kite.mp4"), clip("kite_v2.mp4"), True),
        (clip("a/kite.mp4"), clip("a/kite.png"), True),
        (clip("0001/video.mp4"), clip("0002/video.mp4"), False),
        (clip("shot_7.mp4"), clip("shot_71.mp4"), False),
        (clip("shot_7.mp4"), clip("shot_8_tall.mp4"), False),
        (clip("shot_7.mp4"), clip("shot_7_8.mp4"), False),
        (clip("red_car.mp4"), clip("red_house.mp4"), False),
        (clip("x.mp4", source="film, frames 5-9"), clip("y.png", source="film, frame 9"), True),
        (clip("x.mp4", source="film, frames 5-9"), clip("y.png", source="film, frame 10"), False),
        (clip("x.mp4", source="film, frames 5-9"), clip("y.mp4", source="book, frames 5-9"), False),
        (clip("x.mp4", source="web"), clip("y.mp4", source="web"), False),
        (clip("x.mp4", group=3), clip("y.mp4", group="3"), True),
        (clip("shot_7.mp4", group="g"), clip("shot_7_tall.mp4", group="h"), False),
    ],
)
def test_related_clips_are_one_group(one, other, related):
    groups = group_clips([one, other], {one.file_name: "1", other.file_name: "2"})
    assert (len(set(groups.values())) == 1) == related


def test_equal_bytes_are_one_group_whatever_the_metadata_says():
    groups = group_clips([clip("a", group="1"), clip("b", group="2")], {"a": "x", "b": "x"})
    assert len(set(groups.values())) == 1


def test_held_out_share_and_its_limits():
    many = {str(number): str(number) for number in range(4000)}
    held = held_out_groups(many, 0.1)
    assert 0.08 < len(held) / len(many) < 0.12
    # Adding clips moves none of the old ones to the other side.
    more = {str(number): str(number) for number in range(5000)}
    assert {group for group in held_out_groups(more, 0.1) if int(group) < 4000} == held
    assert held_out_groups(many, 0.0) == set()
    assert len(held_out_groups({"a": "a", "b": "b"}, 0.01)) == 1
    assert len(held_out_groups({"a": "a", "b": "b"}, 0.99)) == 1
    assert held_out_groups({"a": "one", "b": "one"}, 0.9) == set()
    lopsided = {**{str(n): "most" for n in range(8)}, "a": "a", "b": "b"}
    assert "most" not in held_out_groups(lopsided, 0.9)
