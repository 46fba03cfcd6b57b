"""Reading video files: the right frames, pixels and times, and clear refusals."""

import fractions
import io
import json
import re
import struct

import av
import numpy as np
import pytest
from video_samples import COLORS, HEIGHT, WIDTH, difference, flat, jpeg, make, numbered, numbers

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


def test_shrinking_averages_areas():
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    source = make(picture[None], "image2pipe", "png", "rgb24")
    small = video_io.decode(source, size=(12, 16))[0]
    assert difference(small, picture.reshape(12, 4, 16, 4, 3).mean((1, 3))) <= 1


def test_growing_keeps_a_ramp_straight():
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None], (16, 24, 3))
    source = make(ramp[None], "image2pipe", "png", "rgb24")
    large = video_io.decode(source, size=(64, 96))[0, 32, 12:-12, 0]
    assert (
        difference(large, np.interp(np.arange(12, 84), 4 * np.arange(24) + 1.5, ramp[0, :, 0])) <= 2
    )


def test_the_picture_covers_the_size_and_the_crop_says_which_part():
    rows = np.broadcast_to(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], (48, 64, 3))
    columns = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (48, 64, 3))
    for at in (0.0, 0.25, 1.0):
        wide = video_io.decode(
            make(rows[None], "image2pipe", "png", "rgb24"), size=(24, 64), crop=(at, 0.7)
        )[0]
        assert np.array_equal(wide, rows[round(24 * at) :][:24])
        tall = video_io.decode(
            make(columns[None], "image2pipe", "png", "rgb24"), size=(48, 24), crop=(0.7, at)
        )[0]
        assert np.array_equal(tall, columns[:, round(40 * at) :][:, :24])
    halved = video_io.decode(make(rows[None], "image2pipe", "png", "rgb24"), size=(24, 24))
    assert halved.shape == (1, 24, 24, 3)


@pytest.mark.parametrize("matrix", [1, 5, 9], ids=["BT.709", "BT.601", "BT.2020"])
@pytest.mark.parametrize("full", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colors_follow_the_stated_matrix_and_range(matrix, full, pixels):
    for color in COLORS:
        options = {"crf": "1"}
        source = make(
            flat(color),
            "mp4",
            "libx264",
            pixels,
            options=options,
            colorspace=matrix,
            color_range=full,
        )
        assert difference(video_io.decode(source), color) <= 3
        assert difference(video_io.decode(source, size=(20, 20)), color) <= 3


@pytest.mark.parametrize(("height", "matrix"), [(240, 5), (720, 1)])
def test_unstated_matrix_goes_by_size(height, matrix):
    frames = np.broadcast_to(np.uint8((200, 30, 60)), (1, height, 320, 3))
    plain = av.VideoFrame.from_ndarray(frames[0]).reformat(format="yuv420p", dst_colorspace=matrix)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=1, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = height, 320, "yuv420p"
        plain.colorspace, plain.pts = 2, 0
        output.mux(stream.encode(plain))
        output.mux(stream.encode(None))
    assert difference(video_io.decode(file.getvalue()), (200, 30, 60)) <= 3


def test_grey_keeps_its_levels():
    ramp = np.broadcast_to(np.arange(0, 256, 4, dtype=np.uint8)[:, None], (1, 48, 64, 3))
    png = make(ramp, "image2pipe", "png", "gray")
    assert difference(video_io.decode(png), ramp) == 0
    limited = np.uint8(np.rint(16 + ramp * (219 / 255)))
    video = make(limited, "matroska", "ffv1", "gray", color_range=1)
    assert difference(video_io.decode(video), ramp) <= 1


CORNERS = np.zeros((1, 32, 64, 3), np.uint8)
CORNERS[0, :16, :32], CORNERS[0, :16, 32:], CORNERS[0, 16:, :32] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_and_mirrored_video_is_shown_upright(degrees, mirror):
    source = make(
        CORNERS.repeat(30, 0),
        "mp4",
        "libx264",
        "yuv444p",
        options={"crf": "1", "g": "5"},
        setup=lambda stream: stream.set_display_rotation(degrees, hflip=mirror),
    )
    upright = np.rot90(CORNERS[0], degrees // 90)
    upright = upright[:, ::-1] if mirror else upright
    info = video_io.probe(source)
    assert (info.height, info.width) == upright.shape[:2]
    shown = video_io.decode(source, start=0.5, frames=1)[0]  # also after a seek
    assert difference(shown, upright) <= 4
    right = video_io.decode(source, frames=1, size=(16, 16), crop=(1.0, 1.0))[0]
    assert difference(right[8, 8], upright[-upright.shape[0] // 4, -upright.shape[1] // 4]) <= 4


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_photographs_are_turned_as_exif_says(orientation, quarters):
    tag = struct.pack(">HHIHHI", 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag
    plain = jpeg(CORNERS)
    photo = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    upright = np.rot90(CORNERS[0], quarters)
    assert difference(video_io.decode(photo)[0], upright) <= 4
    info = video_io.probe(photo)
    assert (info.height, info.width, info.is_image, info.frames) == (*upright.shape[:2], True, 1)


def test_pixels_are_made_square():
    def anamorphic(stream):
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(3, 2)

    source = make(numbered(3), "mp4", "libx264", "yuv420p", setup=anamorphic)
    assert (video_io.probe(source).height, video_io.probe(source).width) == (48, 96)
    assert video_io.decode(source).shape == (3, 48, 96, 3)


def test_transparency_lies_on_black_and_hidden_colors_do_not_bleed():
    picture = np.zeros((1, 48, 64, 4), np.uint8)
    picture[..., :32, :] = (200, 100, 50, 255)
    picture[..., 32:, :] = (0, 255, 0, 0)  # invisible green
    picture[:, :24, :16, 3] = 128
    source = make(picture, "image2pipe", "png", "rgba")
    shown = video_io.decode(source)[0]
    assert np.array_equal(shown[40, 10], (200, 100, 50)) and np.array_equal(
        shown[4, 4], (100, 50, 25)
    )
    assert not shown[:, 32:].any()
    edge = video_io.decode(source, size=(9, 12))[0].astype(int)
    assert (edge[..., 1] <= edge[..., 0] // 2 + 1).all()


def test_webp_animation_with_partial_transparent_frames():
    frames = np.zeros((4, 48, 64, 4), np.uint8)
    frames[:, 4:12, 4:12] = (250, 0, 0, 255)
    for index in range(1, 4):
        frames[index, 20:30, 10 * index : 10 * index + 12] = (0, 0, 200, 255)
    source = make(frames, "webp", "libwebp_anim", "bgra", options={"lossless": "1"})
    assert source.count(b"ANMF") == 4
    shown = video_io.decode(source)
    assert np.array_equal(shown, frames[..., :3])
    info = video_io.probe(source)
    assert (info.frames, info.fps, info.height, info.width) == (4, 25.0, 48, 64)
    assert np.array_equal(video_io.decode(source, start=0.08, frames=1)[0], frames[2, ..., :3])


def test_a_late_frame_of_a_dataset_clip_costs_no_more_than_an_early_one():
    with video_reader.Reader(video_io.encode(numbered(200), 24)) as reader:
        begin, _, _ = next(reader.frames(start=8.0))
    assert 8.0 - 11.5 / 24 < begin <= 8.0


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def test_what_is_not_a_video_is_refused_by_name(tmp_path):
    video, photo = (
        video_io.encode(numbered(30), 24),
        jpeg(np.kron(CORNERS, np.ones((8, 8, 1), "u1"))),
    )
    video_io.write(tmp_path / "whole.mp4", numbered(30))
    index_first = (tmp_path / "whole.mp4").read_bytes()
    empty = io.BytesIO()
    with av.open(empty, "w", format="mp4") as output:
        output.add_stream("libx264", rate=24).codec_context.open()
        output.start_encoding()
    refused = {
        "empty.mp4": (b"", "is empty"),
        "text.mp4": (b"just some words\n" * 100, "not a video"),
        "sound.mp4": (_sound(), "only sound"),
        "cut.mp4": (video[: len(video) // 2], "truncated.*moov"),
        "cut_late.mp4": (index_first[: len(index_first) * 3 // 4], "truncated"),
        "cut.jpg": (photo[: len(photo) // 2], "damaged"),
        "frameless.mp4": (empty.getvalue(), "no frames|is empty|no video"),
    }
    for name, (content, reason) in refused.items():
        path = tmp_path / name
        path.write_bytes(content)
        for read in (video_io.probe, video_io.decode):
            with pytest.raises(video_io.VideoError, match=f"{name}: .*({reason})"):
                read(path)
    for path, reason in ((tmp_path / "missing.mp4", "No such file"), (tmp_path, "directory")):
        with pytest.raises(video_io.VideoError, match=f"{re.escape(str(path))}: .*{reason}"):
            video_io.probe(path)
    with pytest.raises(video_io.VideoError, match=r"<\d+ bytes>"):
        video_io.probe(video[:100])


def test_a_playlist_opens_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video_io.write(tmp_path / "clip.mp4", numbered(3))
    for name, text in (
        ("list.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{tmp_path}/clip.mp4\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(video_io.VideoError, match=name):
            video_io.probe(tmp_path / name)


def test_a_clip_that_is_too_short_says_how_short():
    source = video_io.encode(numbered(10), 10)
    with pytest.raises(video_io.VideoError, match=r"5 of 6 frames from 0\.5 s"):
        video_io.decode(source, start=0.5, frames=6)
    with pytest.raises(video_io.VideoError, match="0 of 1 frames from 7 s"):
        video_io.decode(source, start=7.0)


def test_absurd_sizes_are_refused_before_they_are_allocated():
    source = video_io.encode(numbered(2), 24)
    with pytest.raises(video_io.VideoError, match="8 GiB"):
        video_io.decode(source, size=(4000, 4000), frames=2_000_000)
    with pytest.raises(video_io.VideoError, match="8 GiB"):
        video_io.decode(source, fps=1e9)
    with pytest.raises(video_io.VideoError, match="resized to cover"):
        video_io.decode(source, size=(20_000, 20_000), frames=1)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + bytes(4)
    with pytest.raises(video_io.VideoError):
        video_io.decode(bomb + struct.pack(">I", 0) + b"IEND" + bytes(4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1.0},
        {"start": float("nan")},
        {"frames": 0},
        {"fps": 0},
        {"size": (0, 8)},
        {"crop": (0.5, 1.5)},
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(video_io.VideoError, match=re.escape(f"{next(iter(wrong))}=")):
        video_io.decode(video_io.encode(numbered(2), 24), **wrong)


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
