"""What cannot be read or was asked for wrongly is refused by name, early."""

import io
import re
import struct

import av
import numpy as np
import pytest
from video_samples import CORNERS, jpeg, numbered

from sora_jax import video_io


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
