"""Writing video files: what others can play, read back the same, and nothing half-written."""

import io
import os
import resource

import av
import numpy as np
import pytest
from video_samples import COLORS, HEIGHT, WIDTH, difference, flat, numbered, numbers, psnr

from sora_jax import video_io


def test_encode_and_decode_agree():
    frames = numbered(30)
    source = video_io.encode(frames, 24000 / 1001)
    assert psnr(video_io.decode(source), frames) > 30
    info = video_io.probe(source)
    assert (info.frames, info.height, info.width) == (30, HEIGHT, WIDTH)
    assert info.fps == 24000 / 1001 and info.duration == pytest.approx(30 * 1001 / 24000)


def test_a_dataset_clip_has_a_key_frame_every_twelve_and_none_out_of_order():
    with av.open(io.BytesIO(video_io.encode(numbered(40), 24))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [index for index, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[0] == 0 and max(np.diff([*keys, len(packets)])) <= 12
    assert all(packet.pts == packet.dts for packet in packets)


def test_color_does_not_drift_by_half_a_pixel():
    frames = np.full((1, 64, 64, 3), 128, np.uint8)
    frames[:, 16:48, 16:48] = (220, 80, 60)
    redness = np.float64(video_io.decode(video_io.encode(frames, 24))[0])
    redness = (redness[..., 0] - redness[..., 2]).clip(0)
    assert redness.sum(0) @ np.arange(64) / redness.sum() == pytest.approx(31.5, abs=0.1)
    assert redness.sum(1) @ np.arange(64) / redness.sum() == pytest.approx(31.5, abs=0.1)


def test_mp4_is_what_browsers_play(tmp_path):
    path = tmp_path / "clip.mp4"
    video_io.write(path, numbered(10), fps=30)
    content = path.read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
    assert (context.name, frame.format.name) == ("h264", "yuv420p")
    bt709_limited = [frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range]
    assert bt709_limited == [1, 1, 1, 1]
    for color in COLORS:
        video_io.write(path, flat(color, 1))
        assert difference(video_io.decode(path), color) <= 3


def test_the_same_frames_make_the_same_file(tmp_path):
    y, x = np.mgrid[:64, :96]
    noise = np.random.default_rng(0).normal(size=(17, 64, 96, 3))
    for strength in (2, 6, 12):
        spots = np.exp([-((x - 20 - 4 * t) ** 2 + (y - 32) ** 2) / 200 for t in range(17)])
        frames = 128 + 100 * spots[..., None] * (1, -1, 0.2) + strength * noise
        frames = frames.clip(0, 255).astype(np.uint8)
        files = set()
        for _ in range(20):
            video_io.write(tmp_path / "video.mp4", frames, fps=8)
            files.add((tmp_path / "video.mp4").read_bytes())
        assert len(files) == 1


def test_odd_sides_grow_by_a_copied_edge_in_mp4(tmp_path):
    frames = np.broadcast_to(np.arange(0, 210, 10, dtype=np.uint8)[:, None, None], (21, 33, 3))
    frames = np.stack([frames, frames + 40])
    video_io.write(tmp_path / "odd.mp4", frames)
    shown = video_io.decode(tmp_path / "odd.mp4")
    assert shown.shape == (2, 22, 34, 3)
    assert (
        difference(shown[:, :21, :33], frames) <= 8
        and difference(shown[:, 21, :33], frames[:, -1]) <= 8
    )
    for suffix in (".gif", ".webp"):
        video_io.write(tmp_path / f"odd{suffix}", frames)
        assert video_io.decode(tmp_path / f"odd{suffix}").shape == frames.shape


@pytest.mark.parametrize(("suffix", "quality"), [(".mp4", 30), (".gif", 40), (".webp", 28)])
def test_written_video_reads_back_the_same(tmp_path, suffix, quality):
    frames = numbered(20)
    path = tmp_path / f"a:b %03d{suffix.upper()}"  # names that FFmpeg would interpret
    with video_io.VideoWriter(path, fps=24, height=HEIGHT, width=WIDTH) as writer:
        for index in range(0, 20, 8):
            writer.write(frames[index : index + 8])
    shown = video_io.decode(path)
    assert numbers(shown) == list(range(20)) and psnr(shown, frames) > quality
    info = video_io.probe(path)
    assert info.fps == pytest.approx(24, rel=0 if suffix == ".mp4" else 5e-3)
    assert info.duration == pytest.approx(20 / 24, abs=0.01)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_gif_frames_with_different_palettes_keep_their_colors(tmp_path):
    levels = [0, 200, 0, 0, 30, 200, 90]
    frames = np.stack([np.full((20, 20, 3), level, np.uint8) for level in levels])
    video_io.write(tmp_path / "flat.gif", frames, fps=10)
    assert difference(video_io.decode(tmp_path / "flat.gif"), frames) <= 2


def test_png_is_lossless(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    video_io.write(tmp_path / "picture.png", picture)
    assert np.array_equal(video_io.decode(tmp_path / "picture.png"), picture[None])
    assert video_io.probe(tmp_path / "picture.png").is_image


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), video_io.VideoWriter(path, 24, HEIGHT, WIDTH) as writer:
        writer.write(numbered(60))
        assert len(list(tmp_path.iterdir())) == 2  # it does write beside the file
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".mp4", ".png", ".gif", ".webp"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    count = 1 if suffix == ".png" else 20
    noise = np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), np.uint8)
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="clip") as error:
            video_io.write(tmp_path / f"clip{suffix}", noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(error.value, video_io.VideoError) and not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_to_is_known_before_the_frames(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(video_io.VideoError, match=r"clip.mp4: is a folder; name a file"):
        video_io.VideoWriter(tmp_path / "clip.mp4", 24, HEIGHT, WIDTH)
    # No file can be made there, whoever asks; to root a folder without permissions is open.
    with pytest.raises(OSError, match=r"/proc/clip.mp4"):
        video_io.VideoWriter("/proc/clip.mp4", 24, HEIGHT, WIDTH)
    video_io.VideoWriter(tmp_path / "other.mp4", 24, HEIGHT, WIDTH)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_what_cannot_be_written_is_refused_by_name(tmp_path):
    frames = numbered(2)
    refused = [
        ("clip.mov", frames, "clip.mov.*unknown suffix.*mp4, .png, .gif, .webp"),
        ("none/clip.mp4", frames, "none/clip.mp4.*folder does not exist"),
        ("two.png", frames, "two.png.*one frame.*use .mp4"),
        ("zero.mp4", frames[:0], "zero.mp4.*no frames"),
        ("float.mp4", frames / 255, "must be uint8.*float64"),
        ("grey.mp4", frames[..., :1], r"must be uint8 \[F,H,W,3\].*1\)"),
    ]
    for name, content, message in refused:
        with pytest.raises(video_io.VideoError, match=message):
            video_io.write(tmp_path / name, content)
    with pytest.raises(video_io.VideoError, match="fps=0"):
        video_io.write(tmp_path / "still.mp4", frames, fps=0)
    with (
        pytest.raises(video_io.VideoError, match=r"\(24, 64\).*\(48, 64\)"),
        video_io.VideoWriter(tmp_path / "sizes.mp4", 24, HEIGHT, WIDTH) as writer,
    ):
        writer.write(frames)
        writer.write(frames[:, ::2])
    assert not list(tmp_path.iterdir())
