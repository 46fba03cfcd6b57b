"""An open video or image as a stream of timed frames: the reading half of `video_io`."""

import contextlib
import fractions
import io
import itertools
import math
import os
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from sora_jax import video_picture
from sora_jax.video_picture import MAX_PIXELS
from sora_jax.video_webp import Animation, WebPError, is_animation

TICK = 1e-6  # seconds; times closer than this are the same

# The containers whose index leads FFmpeg to a key frame. In the others (MPEG program and transport
# streams, AVI, FLV) the frames after a seek can carry wrong times or broken pictures.
_INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class VideoError(ValueError):
    """A video that cannot be read or written; the message names the file and the reason."""


class Reader:
    """An open video or image."""

    def __init__(self, source: str | os.PathLike | bytes):
        self.scaler = VideoReformatter()
        if isinstance(source, bytes):
            self.name, self.file = f"<{len(source)} bytes>", io.BytesIO(source)
        else:
            self.name = os.fspath(source)
            try:
                # FFmpeg sees no file name, only content: so a name cannot mean a numbered
                # sequence, a protocol or a text file to be drawn.
                with open(source, "rb") as named:
                    self.file = os.fdopen(os.dup(named.fileno()), "rb")
            except OSError as error:
                raise self.error(error.strerror) from error
        try:
            self._open()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.container:
            self.container.close()
        self.file.close()

    def error(self, reason: str) -> VideoError:
        return VideoError(f"{self.name}: {reason}")

    def _open(self):
        """Goes (back) to the beginning."""
        self.file.seek(0)
        head = self.file.read(32)
        if not head:
            raise self.error("is empty")
        self.container, self.pixel_aspect = None, 1
        self.rate, self.seconds = fractions.Fraction(25), 0.0  # unless the file states them
        self.file.seek(0)
        if is_animation(head):
            self.animation = Animation(self.file.read())
            times = self.animation.milliseconds
            self.seconds = sum(times) / 1000
            self.rate = fractions.Fraction(1000 * len(times), sum(times) or 1) or self.rate
            return
        if head[4:8] == b"ftyp" and _cut_short(self.file):
            raise self.error("is truncated (its data end before its index says so); copy it again")
        try:
            # No protocol: a playlist must not make this open other files or addresses.
            self.container = av.open(
                self.file,
                container_options={"protocol_whitelist": "none"},
                metadata_errors="replace",  # titles in other encodings than UTF-8 do no harm
            )
        except av.FFmpegError as error:
            if head[4:8] == b"ftyp":
                reason = "is truncated (no moov atom, the index at its end); copy it again"
            else:
                reason = f"is not a video or image that FFmpeg reads ({error.strerror})"
            raise self.error(reason) from error
        covers = av.stream.Disposition.attached_pic  # the picture of a song is not a video
        streams = [s for s in self.container.streams.video if not s.disposition & covers]
        if not streams:
            sound = bool(self.container.streams.audio)
            raise self.error("holds only sound" if sound else "holds no video")
        self.stream = streams[0]
        context = self.stream.codec_context
        if context is None:
            raise self.error("is in a format that this FFmpeg cannot decode")
        if not 0 < context.width * context.height <= MAX_PIXELS:
            raise self.error("is empty, damaged or larger than 16384 x 16384 pixels")
        context.thread_count = 1  # more cost more than they save on short clips and in loaders
        if self.container.format.name == "jpeg_pipe":
            context.options = {"err_detect": "explode"}  # else half a JPEG is a grey picture
        self.rate = self.stream.average_rate or self.stream.guessed_rate or self.rate
        self.pixel_aspect = self.stream.sample_aspect_ratio or 1
        self.seconds = (self.container.duration or 0) / av.time_base

    def extent(self) -> tuple[int, float]:
        """The number of frames and the seconds they last, found without decoding them."""
        self._open()
        if self.container is None:
            ends = [end for _, end, _ in self.frames()]
            return len(ends), ends[-1]
        times = []
        with self._reading():
            for packet in self._packets():
                if packet.size and not packet.is_discard:
                    times.append((packet.pts, packet.duration or 0))
        if any(pts is None for pts, _ in times):
            return len(times), float(len(times) / self.rate)
        last, duration = max(times)
        duration = duration * self.stream.time_base or 1 / self.rate
        return len(times), float((last - times[0][0]) * self.stream.time_base + duration)

    def frames(self, start: float = 0.0) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """(begin, end, frame) in order of time, from one at or before `start` to the last.

        Times are in seconds since the first frame of the source.
        """
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            raise self.error("has no frames")
        base = float((first.pts or 0) * first.time_base)
        # A seek is believed if it leads to a key frame at or before the time; where frames are
        # stored out of order it can land one key frame late, hence the second try.
        for early in (0.0, 2.0):
            if start > early and self.container and self.container.format.name in _INDEXED:
                sought = self._timed(self._sought(base + start - early), base)
                found = next(sought, None)
                if found and found[0] <= start + TICK:
                    yield found
                    yield from sought
                    return
        if start > 0:
            self._open()
            decoded = self._decoded()
            first = next(decoded)
        yield from self._timed(itertools.chain([first], decoded), base)

    def _sought(self, time: float) -> Iterator[av.VideoFrame]:
        try:
            self.container.seek(int(time / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            return iter(())
        return itertools.dropwhile(lambda frame: not frame.key_frame, self._decoded())

    def _packets(self):
        for packet in self.container.demux(self.stream):
            # A recorded broadcast may well begin with a damaged packet.
            if packet.is_corrupt and self.container.format.name != "mpegts":
                raise self.error("is truncated in the middle of a frame; copy it again")
            yield packet

    def _decoded(self) -> Iterator[av.VideoFrame]:
        with self._reading():
            if self.container is None:
                yield from self.animation.frames(self.scaler)
                return
            for packet in self._packets():
                yield from packet.decode()

    def _timed(self, decoded, base: float):
        begin, end = -math.inf, 0.0
        for frame in decoded:
            stated = None if frame.pts is None else float(frame.pts * frame.time_base) - base
            # Raw streams state no times and AVI can state wrong ones: then frames follow closely.
            begin = end if stated is None or stated <= begin else stated
            end = begin + float(frame.duration * frame.time_base or 1 / self.rate)
            yield begin, end, frame

    @contextlib.contextmanager
    def _reading(self):
        try:
            yield
        except av.FFmpegError as error:
            raise self.error(f"is damaged or unsupported ({error.strerror})") from error
        except WebPError as error:
            raise self.error(str(error)) from error

    def displayed(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Height and width of the upright picture in square pixels."""
        return video_picture.displayed(frame, self.pixel_aspect)

    def picture(self, frame: av.VideoFrame, size, crop) -> np.ndarray:
        """The upright picture, resized to cover `size` and cropped to it: uint8 [H,W,3]."""
        sides = self.displayed(frame)
        scale = max(size[0] / sides[0], size[1] / sides[1])
        cover = [max(want, round(side * scale)) for want, side in zip(size, sides)]
        if math.prod(cover) > MAX_PIXELS or frame.width * frame.height > MAX_PIXELS:
            raise self.error(f"{sides[0]}x{sides[1]} pixels cannot be resized to cover {size}")
        whole = video_picture.resized(frame, cover, self.scaler)
        top, left = (round((side - want) * at) for side, want, at in zip(cover, size, crop))
        return whole[top : top + size[0], left : left + size[1]].copy()


def _cut_short(file: io.BufferedIOBase) -> bool:
    """Whether an MP4's data, after its index, go on beyond the end of the file (ISO/IEC 14496-12).

    FFmpeg only sees this where the cut falls inside a frame.
    """
    size, position, kind, indexed = file.seek(0, io.SEEK_END), 0, b"", False
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        indexed = indexed or kind == b"moov"
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0 reaches to the end; the rest is left to FFmpeg
            break
        position += length
    file.seek(0)
    return indexed and kind == b"mdat" and position > size
