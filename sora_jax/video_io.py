"""Video and image files <-> uint8 frames, through PyAV (FFmpeg)."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator

import av
import numpy as np

from sora_jax.video_picture import MAX_PIXELS
from sora_jax.video_reader import TICK, Reader, VideoError
from sora_jax.video_writer import VideoWriter, encode, write

__all__ = ["MAX_BYTES", "MAX_PIXELS", "VideoError", "VideoInfo", "VideoWriter"]
__all__ += ["decode", "encode", "probe", "write"]

MAX_BYTES = 8 << 30  # in all the frames that one call returns


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file holds. Height and width are in square pixels, upright; duration in seconds."""

    frames: int
    fps: float
    height: int
    width: int
    is_image: bool
    duration: float


def probe(source: str | os.PathLike | bytes) -> VideoInfo:
    """Measures a video or image: its first frame is decoded, the others are counted.

    `fps` is the average frame rate where frames are not evenly spaced; an image has one frame.
    Raises VideoError if there is nothing that `decode` could read, or the end of it is missing.
    """
    with Reader(source) as reader:
        height, width = reader.displayed(next(reader.frames())[2])
        frames, duration = reader.extent()
    # The rate that the file states is exact (30000/1001), if it is true.
    fps = reader.rate if abs(reader.rate * duration - frames) < 0.1 else frames / duration
    return VideoInfo(frames, float(fps), height, width, frames == 1, duration)


def decode(
    source: str | os.PathLike | bytes,
    *,
    start: float = 0.0,
    frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    crop: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Frames of a video or image as they are displayed (upright, square pixels), uint8 [F,H,W,3].

    Args:
      source: a path, or the bytes of a file.
      start: seconds after the first frame.
      frames: how many; None takes all to the end.
      fps: frames a second, each the one nearest to its time, but never one that begins more than
        the usual time of a frame later: a picture held for long is held. None takes the stored
        frames one by one, however they are spaced, from the one nearest to `start`.
      size: (height, width); None is the displayed size. The picture is resized to just cover it,
        by area averages where it shrinks, cubically where it grows, and then cropped to it.
      crop: where the crop lies, (vertical, horizontal): 0 is top or left, 1 bottom or right.

    Transparent pixels are laid on black; HDR is not tone-mapped. Raises VideoError if the source
    is not a video or is damaged, ends before it gave `frames` frames, or is beyond MAX_PIXELS or
    MAX_BYTES.
    """
    if not 0 <= start < math.inf or (frames is not None and frames < 1):
        raise VideoError(f"start={start}, frames={frames}: start must be >= 0 and frames >= 1")
    if fps is not None and not 0 < fps < math.inf:
        raise VideoError(f"fps={fps} must be positive, or None for every stored frame")
    if (size is not None and min(size) < 1) or not all(0 <= side <= 1 for side in crop):
        raise VideoError(f"size={size} must be at least 1x1 and crop={crop} between 0 and 1")
    pictures, shown = [], None
    with Reader(source) as reader:
        timed = reader.frames(start)
        if fps is None:
            chosen = _stored(timed, start)
        else:
            chosen = _resampled(timed, start, fps, 1 / reader.rate)
        expected = frames or int((reader.seconds - start) * (fps or reader.rate))
        for frame in itertools.islice(chosen, frames):
            size = size or reader.displayed(frame)
            if math.prod(size) * 3 * max(expected, len(pictures) + 1) > MAX_BYTES:
                remedy = "ask for fewer frames at a time or a smaller size"
                raise reader.error(f"the frames take more than {MAX_BYTES >> 30} GiB; {remedy}")
            if frame is not shown:
                picture, shown = reader.picture(frame, size, crop), frame
            pictures.append(picture)
    if len(pictures) < (frames or 1):
        found = f"{len(pictures)} of {frames or 1} frames from {start:g} s to its end"
        raise reader.error(f"has only {found}; start earlier or ask for fewer")
    result = np.empty((len(pictures), *size, 3), np.uint8)
    for index in range(len(result)):  # not np.stack: each picture is freed once it is copied
        result[index], pictures[index] = pictures[index], None
    return result


def _stored(timed, start: float) -> Iterator[av.VideoFrame]:
    """The frame nearest to `start` and all that follow it."""
    before = None
    for begin, end, frame in timed:
        if begin < start - TICK:
            before = begin, end, frame
            continue
        if before and start - before[0] <= begin - start + TICK:
            yield before[2]
        before = None
        yield frame
    if before and start < before[1] - TICK:
        yield before[2]


def _resampled(timed, start: float, fps: float, usual: float) -> Iterator[av.VideoFrame]:
    """The frame nearest to each of start, start + 1 / fps, ... until the last frame is over."""
    times = (start + index / fps for index in itertools.count())
    time, before = next(times), None
    for begin, end, frame in timed:
        while time <= begin + TICK:
            early = begin - time
            hold = before and (time - before[0] <= early + TICK or early > usual + TICK)
            yield before[2] if hold else frame
            time = next(times)
        before = begin, end, frame
    while before and time < before[1] - TICK:
        yield before[2]
        time = next(times)
