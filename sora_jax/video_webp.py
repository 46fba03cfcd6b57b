"""WebP animations, which FFmpeg cannot read; the container is RFC 9649, section 2.7."""

import fractions
import io
import struct
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from sora_jax.video_picture import MAX_PIXELS, rgba


class WebPError(ValueError):
    """An animation that cannot be read; the message is the reason."""


class Animation:
    """The pictures of an animation.

    Attributes:
      milliseconds: int [F], how long each lasts.
    """

    def __init__(self, content: bytes):
        self._chunks = list(_chunks(content[12:]))
        self.milliseconds = [_number(body[12:]) for kind, body in self._chunks if kind == b"ANMF"]

    def frames(self, scaler: VideoReformatter) -> Iterator[av.VideoFrame]:
        """Each is a still WebP, which FFmpeg decodes, laid on a part of the one before.

        Raises:
          WebPError, av.FFmpegError: it is damaged or too large.
        """
        time = 0
        for kind, body in self._chunks:
            if kind == b"VP8X":
                width, height = _number(body[4:]) + 1, _number(body[7:]) + 1
                if width * height > MAX_PIXELS:
                    raise WebPError("is larger than 16384 x 16384 pixels")
                canvas = np.zeros((height, width, 3), np.uint8)
            if kind != b"ANMF":
                continue
            still = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0x10) + body[6:12] + body[16:]
            still = io.BytesIO(b"RIFF" + struct.pack("<I", len(still)) + still)
            with av.open(still) as container:
                pictures = [rgba(frame, scaler) for frame in container.decode(video=0)]
            left, top, duration = 2 * _number(body), 2 * _number(body[3:]), _number(body[12:])
            height, width = _number(body[9:]) + 1, _number(body[6:]) + 1
            region = canvas[top : top + height, left : left + width]
            if [p.shape[:2] for p in pictures] != [region.shape[:2]]:
                raise WebPError("is a damaged WebP animation")
            rgb, alpha = pictures[0][..., :3], pictures[0][..., 3:]
            below = 0 if body[15] & 2 else region * (255 - alpha)
            region[:] = (rgb * alpha + below + 127) // 255
            frame = av.VideoFrame.from_ndarray(canvas)
            frame.pts, frame.duration, frame.time_base = time, duration, fractions.Fraction(1, 1000)
            yield frame
            time += duration
            if body[15] & 1:  # the frame asks to be cleared after its time
                region[:] = 0


def is_animation(head: bytes) -> bool:
    """Whether a file that begins with these 32 bytes is an animation."""
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _number(data: bytes) -> int:
    return int.from_bytes(data[:3], "little")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of each part of a RIFF file."""
    at = 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
