"""The loader where clips cannot be read, fit nowhere, or it is asked for what cannot be."""

import itertools

import numpy as np
import pytest

from tests.data.fake_clips import (
    BUCKETS,
    TALL,
    WIDE,
    FakeClips,
    clips_of,
    load,
    take,
)


def test_a_clip_that_cannot_be_read_is_replaced_within_its_bucket_and_reported_once(caplog):
    healthy = take(load(FakeClips((0, 12, 12))), 12)
    loader = load(FakeClips((0, 12, 12), broken=[5]))
    batches = list(itertools.islice(loader, 12))
    loader.close()
    for batch, well in zip(batches, healthy):
        clips = clips_of(batch)
        assert 5 not in clips
        kept = [place for place, clip in enumerate(clips_of(well)) if clip != 5]
        for name in batch:
            np.testing.assert_array_equal(batch[name][kept], well[name][kept])
        assert all((clip < 12) == (clips[0] < 12) for clip in clips)
    assert loader.iterator.substituted == 2, "once in each of the two epochs"
    assert loader.iterator.failures == {5: "OSError: damaged bytes in clip 5"}
    assert caplog.text.count("damaged bytes in clip 5") == 1


def test_frames_of_another_shape_count_as_unreadable():
    source = FakeClips((0, 8, 0))
    read = source.read
    source.read = lambda index, bucket, rng: read(index, WIDE if index else TALL, rng)
    loader = load(source)
    assert all(0 not in clips_of(batch) for batch in itertools.islice(loader, 2))
    loader.close()
    assert "instead of uint8 (5, 16, 32, 3)" in loader.iterator.failures[0]


def test_a_bucket_of_unreadable_clips_stops_the_run():
    loader = load(FakeClips((0, 4, 0), broken=range(4)))
    with pytest.raises(ValueError, match=r"5x16x32: 4 clips in a row.*damaged bytes"):
        next(loader)
    loader.close()


def test_the_report_accounts_for_every_clip(caplog):
    source = FakeClips((16, 3, 0))
    source.shapes = np.concatenate([source.shapes, [(3, 16, 32), (9, 16, 40)]]).astype(np.int32)
    report = load(source).report
    rows = {row.bucket: row for row in report.rows}
    assert [rows[bucket].clips for bucket in BUCKETS] == [16, 4, 0]
    assert rows[WIDE].crop_loss == pytest.approx(0.2 / 4)
    assert report.empty == (TALL,)
    assert report.unassigned == {"too short (fewer than 5 frames)": 1}
    assert report.steps_per_epoch == 3
    for text in ("20 of 21 clips", "1 too short", "EMPTY", "1x16x32", "5.0%", "66.7%"):
        assert text in str(report)
    assert str(report) in caplog.text, "logged as a warning before the first step"
    caplog.clear()
    load(source, parts=[1], part_count=2)
    assert not caplog.text, "by one host"
    assert "repeat within" in str(load(FakeClips((16, 3, 4))).report)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"batch_size": lambda bucket: 3, "part_count": 2}, "3 clips.*multiple of 2"),
        ({"parts": [2], "part_count": 2}, r"parts=\(2,\) must be some of 0..1"),
        ({"parts": []}, r"parts=\(\)"),
        ({"caption_weights": {}}, "caption_weights"),
        ({"caption_weights": {"short": -1.0}}, "-1.0"),
        ({"caption_dropout": 1.5}, "1.5"),
        ({"epochs": 0}, "epochs=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        load(FakeClips((16, 8, 12)), **wrong)


def test_clips_that_fit_nowhere_are_an_error_with_the_reasons():
    source = FakeClips((0, 4, 0))
    source.shapes[:, 0] = 3
    message = r"none of the 4 clips.*4 too short.*3 to 3 frames.*make shorter or smaller buckets\.$"
    with pytest.raises(ValueError, match=message):
        load(source)
    with pytest.raises(ValueError, match="no clips"):
        load(FakeClips((0, 0, 0)))
