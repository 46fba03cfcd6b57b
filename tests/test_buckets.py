"""Buckets: sides and durations that compress, and the rule by which clips are assigned."""

import math

import numpy as np
import pytest

from sora_jax.buckets import Bucket, assign, assign_all, batch_size, make_buckets, tokens

LANDSCAPE, SQUARE, PORTRAIT = (17, 64, 96), (17, 80, 80), (17, 96, 64)
FAMILY = tuple(
    Bucket(frames, height, width)
    for frames in (1, 17, 33)
    for _, height, width in (LANDSCAPE, SQUARE, PORTRAIT)
)


def test_sides_are_multiples_near_the_area_and_the_ratio():
    ratios = (9 / 16, 3 / 4, 1.0, 4 / 3, 16 / 9, 2.4)
    area = 256 * 256
    buckets = make_buckets(area=area, aspect_ratios=ratios, frames=(1, 17), multiple=16)
    assert len(buckets) == len(ratios) * 2
    for ratio in ratios:
        mine = min(buckets, key=lambda bucket: abs(math.log(bucket.width / bucket.height / ratio)))
        assert mine.height % 16 == mine.width % 16 == 0
        assert mine.width / mine.height == pytest.approx(ratio, rel=0.1)
        assert mine.height * mine.width == pytest.approx(area, rel=0.1)


def test_no_sides_nearer_to_area_and_ratio_exist():
    for ratio in (0.5, 1.0, 1.6):
        (bucket,) = make_buckets(area=90 * 90, aspect_ratios=[ratio], frames=[1], multiple=16)

        def miss(height, width, ratio=ratio):
            return abs(math.log(height * width / 8100)) + abs(math.log(width / height / ratio))

        blocks = [16 * count for count in range(1, 20)]
        best = min(miss(height, width) for height in blocks for width in blocks)
        assert miss(bucket.height, bucket.width) == pytest.approx(best)


def test_equal_buckets_are_made_once_and_sorted():
    buckets = make_buckets(area=32 * 32, aspect_ratios=(1.0, 1.01), frames=(17, 1, 17))
    assert buckets == (Bucket(1, 32, 32), Bucket(17, 32, 32))
    assert str(buckets[1]) == "17x32x32"


@pytest.mark.parametrize("frames, nearest", [(16, "13 and 17"), (2, "1 and 5"), (0, "1 and 5")])
def test_duration_that_does_not_compress_names_the_nearest(frames, nearest):
    with pytest.raises(ValueError, match=f"{frames} frames.*{nearest}"):
        make_buckets(area=4096, aspect_ratios=[1.0], frames=[17, frames])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"aspect_ratios": [-1.0]}, "-1.0"),
        ({"area": 100}, "at least 256"),
        ({"frames": []}, "at least one"),
    ],
)
def test_impossible_buckets_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_buckets(**{"area": 4096, "aspect_ratios": [1.0], "frames": [1], **wrong})


def test_images_go_to_image_buckets_and_videos_do_not():
    assert assign(FAMILY, 1, 240, 360) == Bucket(1, 64, 96)
    assert assign(FAMILY, 20, 240, 360) == Bucket(17, 64, 96)
    assert assign(FAMILY, 16, 240, 360) is None, "too short for any video bucket"
    assert assign(FAMILY[3:], 1, 240, 360) is None, "no image bucket"


def test_longest_duration_that_the_clip_fills():
    assert assign(FAMILY, 32, 240, 360).frames == 17
    assert assign(FAMILY, 33, 240, 360).frames == 33
    assert assign(FAMILY, 1000, 240, 360).frames == 33


def test_closest_aspect_ratio_comes_before_duration():
    long_square = (Bucket(17, 64, 96), Bucket(33, 80, 80))
    assert assign(long_square, 100, 240, 360) == long_square[0]
    assert assign(long_square, 100, 240, 250) == long_square[1]
    assert assign(FAMILY, 17, 400, 240) == Bucket(*PORTRAIT)


def test_rounding_of_the_ratio_does_not_decide_against_duration_or_area():
    short, long = Bucket(17, 96, 176), Bucket(33, 144, 256)  # 1.83 and 1.78
    assert assign((short, long), 40, 288, 528) == long
    small, large = Bucket(17, 144, 256), Bucket(17, 704, 1264)
    assert assign((small, large), 40, 720, 1280) == large
    assert assign((small, large), 40, 288, 512) == small, "the large one would need enlarging"


def test_limits_of_enlarging_and_cropping():
    bucket = (Bucket(17, 80, 80),)
    assert assign(bucket, 17, 64, 64) == bucket[0]
    assert assign(bucket, 17, 63, 64) is None
    assert assign(bucket, 17, 80, 160) == bucket[0]
    assert assign(bucket, 17, 80, 161) is None


def test_every_clip_is_accounted_for():
    shapes = np.array(
        [
            (33, 64, 96),  # exact
            (33, 128, 256),  # a quarter is cropped
            (10, 64, 96),  # short
            (33, 20, 30),  # small
            (33, 64, 960),  # wide
            (33, 64, 96),
        ],
        np.int32,
    )
    buckets = (Bucket(1, 64, 96), Bucket(33, 64, 96))
    found = assign_all(buckets, shapes)
    assert found.choice.tolist() == [1, 1, -1, -1, -1, 1]
    np.testing.assert_allclose(found.crop_loss, [0, 0.25, 0, 0, 0, 0], atol=1e-6)
    assert sum(found.unassigned.values()) == 3
    for why in ("too short (fewer than 33 frames)", "too small", "aspect ratio too far"):
        assert sum(count for text, count in found.unassigned.items() if why in text) == 1
    images = assign_all(buckets[1:], np.array([(1, 64, 96)])).unassigned
    assert images == {"images, but no bucket has 1 frame": 1}
    videos = assign_all(buckets[:1], shapes[:2]).unassigned
    assert videos == {"videos, but every bucket has 1 frame": 2}


def test_a_collection_is_assigned_as_its_clips_are():
    rng = np.random.default_rng(0)
    shapes = np.stack([rng.integers(1, 50, 300), *rng.integers(40, 300, (2, 300))], axis=1)
    choice = assign_all(FAMILY, shapes).choice
    for shape, number in zip(shapes, choice):
        assert assign(FAMILY, *map(int, shape)) == (FAMILY[number] if number >= 0 else None)
    assert 0 < (choice >= 0).sum() < 300


def test_no_buckets_is_an_error_and_no_clips_are_not():
    with pytest.raises(ValueError, match="no buckets"):
        assign((), 17, 64, 64)
    assert assign_all(FAMILY, np.zeros((0, 3), np.int32)).choice.shape == (0,)


def test_tokens_count_the_grid_of_patches():
    assert tokens(Bucket(1, 64, 96)) == 4 * 6
    assert tokens(Bucket(17, 64, 96)) == 5 * 4 * 6
    assert tokens(Bucket(17, 64, 96), temporal=8, spatial=32) == 3 * 2 * 3
    with pytest.raises(ValueError, match=r"17x60x96.*multiples of 16"):
        tokens(Bucket(17, 60, 96))


def test_batch_size_fills_the_token_budget_in_whole_multiples():
    bucket = Bucket(17, 64, 96)  # 120 tokens
    assert batch_size(bucket, token_budget=1000) == 8
    assert batch_size(bucket, token_budget=1320, multiple_of=4) == 8
    assert batch_size(bucket, token_budget=100, multiple_of=4) == 4, "never below the multiple"
    assert batch_size(bucket, token_budget=1320, multiple_of=4, most_clips=6) == 4
    assert batch_size(bucket, token_budget=1320, most_clips=12) == 11, "a limit, not a wish"
    with pytest.raises(ValueError, match="most_clips=-1"):
        batch_size(bucket, token_budget=1000, most_clips=-1)
    with pytest.raises(ValueError, match="token_budget=0"):
        batch_size(bucket, token_budget=0)
