"""Reading video files: the right frames and times, from any start and at any rate."""

import json

import numpy as np
import pytest
from video_samples import HEIGHT, WIDTH, make, numbered, numbers

from sora_jax import video_io, video_reader

CONTAINERS = {
    "mp4 with open groups and B-frames": ("mp4", "libx264", "bframes=3:keyint=25:open-gop=1"),
    "mp4 without B-frames": ("mp4", "libx264", "bframes=0:keyint=12"),
    "mp4 refreshed bit by bit": ("mp4", "libx264", "bframes=0:keyint=8:intra-refresh=1:ref=4"),
    "matroska": ("matroska", "libx264", "bframes=2:keyint=25"),
    "webm": ("webm", "libvpx", ""),
    "transport stream": ("mpegts", "libx264", "bframes=3:keyint=25"),
    "program stream": ("mpeg", "mpeg2video", ""),
    "avi": ("avi", "mpeg4", ""),
    "raw h264 without times": ("h264", "libx264", "bframes=2"),
    "gif": ("gif", "gif", ""),
    "apng": ("apng", "apng", ""),
}


PIXELS = {"gif": "rgb8", "apng": "rgb24"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_start_gives_exactly_the_frames_of_that_time(name):
    container, codec, x264 = CONTAINERS[name]
    options = {"x264-params": x264} if x264 else {"bf": "2"} if codec == "mpeg2video" else {}
    source = make(numbered(80), container, codec, PIXELS.get(codec, "yuv420p"), options=options)
    whole = video_io.decode(source)
    assert numbers(whole) == list(range(80))
    info = video_io.probe(source)
    assert (info.frames, info.height, info.width, info.is_image) == (80, HEIGHT, WIDTH, False)
    assert info.fps == pytest.approx(25) and info.duration == pytest.approx(3.2)
    for start in (1, 20, 24, 26, 49, 51, 68, 77):
        clip = video_io.decode(source, start=start / 25, frames=3)
        assert numbers(clip) == [start, start + 1, start + 2], start
        assert np.array_equal(clip, whole[start : start + 3]), start


def test_frame_rate_is_resampled_by_the_nearest_frame():
    source = video_io.encode(numbered(48), 24)
    assert numbers(video_io.decode(source, fps=8)) == list(range(0, 48, 3))
    assert numbers(video_io.decode(source, fps=48, start=1.0, frames=4)) == [24, 24, 25, 25]
    assert len(video_io.decode(source, fps=48)) == 96
    wanted = [round(24 * (0.3 + k / 10) - 1e-9) for k in range(10)]
    assert numbers(video_io.decode(source, fps=10, start=0.3, frames=10)) == wanted


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_uneven_times_are_followed(container):
    times = np.cumsum([500, *np.tile([20, 75, 40], 13)]).tolist()
    source = make(numbered(40), container, "libx264", "yuv420p", times=times)
    seconds = (np.array(times) - times[0]) / 1000
    info = video_io.probe(source)
    assert info.frames == 40 and info.duration == pytest.approx(seconds[-1] + 0.04, abs=0.06)
    assert info.fps == pytest.approx(40 / info.duration)
    asked = 0.41 + np.arange(12) / 9
    nearest = np.abs(seconds[:, None] - asked).argmin(0).tolist()
    assert numbers(video_io.decode(source, start=0.41, frames=12, fps=9)) == nearest
    first = int(np.abs(seconds - 1.13).argmin())
    stored = numbers(video_io.decode(source, start=1.13, frames=4))
    assert stored == list(range(first, first + 4))


def test_the_stated_frame_rate_is_believed_where_it_fits():
    # Matroska rounds times to a millisecond: 24 frames a second would come out as 23.99.
    assert video_io.probe(make(numbered(50), "matroska", "libx264", "yuv420p", rate=24)).fps == 24


def test_a_picture_held_for_long_is_held():
    times = [*range(0, 800, 40), *range(2800, 3600, 40)]
    source = make(numbered(40), "mp4", "libx264", "yuv420p", times=times)
    usual = 1 / video_io.probe(source).fps
    asked = 0.71 + np.arange(23) / 10
    shown = numbers(video_io.decode(source, start=0.71, fps=10, frames=23))
    for time, number in zip(asked, shown):
        if 0.76 <= time < 2.8 - usual:
            assert number == 19, time
        if time >= 2.8:
            assert number == np.abs(np.array(times) / 1000 - time).argmin(), time


def test_wrong_times_do_not_disorder_the_frames():
    # AVI states no times of display, and what FFmpeg guesses for B-frames goes back and forth.
    source = make(numbered(60), "avi", "libx264", "yuv420p", options={"bf": "2", "g": "25"})
    shown = numbers(video_io.decode(source, fps=25))
    assert shown == sorted(shown) and set(shown) == set(range(60))


def test_a_title_in_another_encoding_does_not_matter():
    source = make(
        *(numbered(3), "matroska", "libx264", "yuv420p"),
        setup=lambda stream: stream.metadata.update(title="gr\u00fcn"),
    )
    foreign = source.replace("gr\u00fcn".encode(), b"gr\xfcne")
    assert foreign != source
    assert numbers(video_io.decode(foreign)) == [0, 1, 2]


def test_a_late_frame_of_a_dataset_clip_costs_no_more_than_an_early_one():
    with video_reader.Reader(video_io.encode(numbered(200), 24)) as reader:
        begin, _, _ = next(reader.frames(start=8.0))
    assert 8.0 - 11.5 / 24 < begin <= 8.0


def test_real_clips_are_measured_and_cut_exactly(real_clips):
    rows = [json.loads(line) for line in (real_clips / "metadata.jsonl").read_text().splitlines()]
    for row in rows[:: len(rows) // 12]:
        path = real_clips / row["file_name"]
        info = video_io.probe(path)
        assert (info.frames, info.height, info.width) == (
            row["frames"],
            row["height"],
            row["width"],
        )
        whole = video_io.decode(path, size=(64, 96))
        assert whole.shape == (info.frames, 64, 96, 3)
        assert info.is_image == (info.frames == 1)
        if info.is_image:
            continue
        assert info.fps == pytest.approx(row["fps"], rel=1e-3)
        first, content = info.frames * 2 // 3, path.read_bytes()
        part = video_io.decode(content, start=first / info.fps, frames=5, size=(64, 96))
        assert np.array_equal(part, whole[first : first + 5])
