"""uint8 frames into mp4, png, gif and webp: the writing half of `video_io`."""

import contextlib
import fractions
import io
import itertools
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import ColorRange

from sora_jax.video_reader import VideoError

# Without its tree of macroblocks: as PyAV brings x264, that reads memory which it never wrote, and
# the same frames make another file each time.
_H264 = {"crf": "17", "x264-params": "mbtree=0"}
# suffix: container, its options, codec, pixel format, its options
_FORMATS = {
    ".mp4": ("mp4", {"movflags": "+faststart"}, "libx264", "yuv420p", _H264),
    ".png": ("image2pipe", {}, "png", "rgb24", {}),
    # Without its flags: they compare palette indices, and here each frame has its own palette.
    ".gif": ("gif", {}, "gif", "pal8", {"gifflags": "0"}),
    ".webp": ("webp", {"loop": "0"}, "libwebp_anim", "bgra", {"quality": "90"}),
}
# Every 12th frame stands alone and none waits for a later one, so any frame is cheap to reach.
_DATASET = ("mp4", {}, "libx264", "yuv420p", {**_H264, "g": "12", "bf": "0"})
# H.264 has its chroma samples at the left pixel of each pair; by itself swscale puts them between.
_BT709_PIXELS = (
    "out_color_matrix=bt709:out_range=tv:out_chroma_loc=left:"
    "flags=area+accurate_rnd+full_chroma_inp"
)
_BT709 = 1  # as colour matrix, primaries and transfer alike


class VideoWriter:
    """Writes frames to a file as they come, in constant memory (webp: that of the file).

        with VideoWriter("clip.mp4", fps=24, height=64, width=96) as writer:
            for frames in chunks:  # uint8 [f,H,W,3]
                writer.write(frames)

    The suffix chooses the format:
      .mp4: H.264 4:2:0, BT.709, index first: plays in browsers. It needs even sides, so an odd
        one grows by a pixel, a copy of the last row or column.
      .png: one frame, without loss.
      .gif: 256 colours a frame; browsers slow down more than 50 frames a second.
      .webp: animated, 24-bit colour; a frame equal to the one before it only makes that last.

    The frames go to a hidden file in the same folder that takes the name, replacing an older file,
    once the block ends without an exception; otherwise it is removed and nothing changes. Raises
    VideoError for what cannot be written, OSError where the disk refuses; a path that cannot be
    written to is known when the writer is made.
    """

    def __init__(self, path: str | os.PathLike, fps: float, height: int, width: int):
        self.path = pathlib.Path(path).absolute()
        self.format = _FORMATS.get(self.path.suffix.lower())
        if self.format is None:
            raise VideoError(f"{path}: unknown suffix; use one of {', '.join(_FORMATS)}")
        if not self.path.parent.is_dir():
            raise VideoError(f"{path}: its folder does not exist; create {self.path.parent}")
        if self.path.is_dir():
            raise VideoError(f"{path}: is a folder; name a file")
        with self._naming():
            tempfile.TemporaryFile(dir=self.path.parent).close()  # may we write here?
        self.fps, self.height, self.width = fps, height, width
        self.partial = self.path.with_name(f".{secrets.token_hex(8)}.partial")

    def __enter__(self):
        with self._naming():
            # "file:", or a colon in the name would be taken for a protocol.
            target, size = f"file:{self.partial}", (self.height, self.width)
            self.encoder = _Encoder(target, self.format, self.fps, *size)
        return self

    def write(self, frames: np.ndarray):
        """Appends frames, uint8 [f,H,W,3]."""
        with self._naming():
            self.encoder.write(frames)

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                with self._naming():
                    self.encoder.close()
                    os.replace(self.partial, self.path)
            else:
                with contextlib.suppress(Exception):
                    self.encoder.container.close()
        finally:
            self.partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _naming(self):
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        except (av.FFmpegError, VideoError) as error:
            raise VideoError(f"{self.path}: {error}") from error


def write(path: str | os.PathLike, frames: np.ndarray | Iterator[np.ndarray], fps: float = 24.0):
    """Writes a video, uint8 [F,H,W,3], or an image, uint8 [H,W,3], to a file: see VideoWriter.

    An iterator over pieces of a video is written piece by piece.
    """
    pieces = frames if isinstance(frames, Iterator) else iter([frames])
    first = _checked(next(pieces, ()))
    with VideoWriter(path, fps, *first.shape[1:3]) as writer:
        for piece in itertools.chain([first], pieces):
            writer.write(piece)


def encode(frames: np.ndarray, fps: float) -> bytes:
    """A video, uint8 [F,H,W,3], as the bytes of an mp4 made for a dataset: H.264 in groups of 12
    frames, so that `decode` reaches any of them at once. Odd sides grow as in VideoWriter."""
    frames = _checked(frames)
    file = io.BytesIO()
    encoder = _Encoder(file, _DATASET, fps, *frames.shape[1:3])
    encoder.write(frames)
    encoder.close()
    return file.getvalue()


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    frames = frames[None] if frames.ndim == 3 else frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise VideoError(f"frames must be uint8 [F,H,W,3], not {frames.dtype} {frames.shape}")
    return frames


class _Encoder:
    """uint8 frames to a container, at a path or in a file object."""

    def __init__(self, target, format, fps: float, height: int, width: int):
        if not 0.01 <= fps <= 1000 or min(height, width) < 1:
            raise VideoError(f"fps={fps}, {height}x{width}: fps must be 0.01 to 1000, sides >= 1")
        container, container_options, codec, self.pixels, options = format
        self.count, self.height, self.width = 0, height, width
        self.odd = (height % 2, width % 2) if self.pixels == "yuv420p" else (0, 0)
        self.container = av.open(target, "w", format=container, container_options=container_options)
        self.rate = fractions.Fraction(fps).limit_denominator(1001)
        self.stream = self.container.add_stream(codec, rate=self.rate, options=options)
        self.stream.height, self.stream.width = height + self.odd[0], width + self.odd[1]
        self.stream.pix_fmt = self.pixels
        if self.pixels == "yuv420p":
            context = self.stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
        self.filters = self._filters()

    def _filters(self) -> av.filter.Graph:
        """From rgb24 to the pixels of the codec, a frame at a time."""
        graph = av.filter.Graph()
        rgb, (height, width) = av.VideoFormat("rgb24"), (self.stream.height, self.stream.width)
        source = graph.add_buffer(width=width, height=height, format=rgb, time_base=1 / self.rate)
        last = graph.add("format", self.pixels)
        if self.pixels == "pal8":
            split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
            dither = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=5")
            source.link_to(split)
            split.link_to(palette, 0)
            split.link_to(dither, 1, 0)
            palette.link_to(dither, 0, 1)
            dither.link_to(last)
        else:
            scale = graph.add("scale", _BT709_PIXELS if self.pixels == "yuv420p" else "")
            graph.link_nodes(source, scale, last)
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph

    def write(self, frames: np.ndarray):
        frames = _checked(frames)
        if frames.shape[1:3] != (self.height, self.width):
            raise VideoError(f"frames of {frames.shape[1:3]}, begun as {self.height, self.width}")
        if self.stream.codec_context.name == "png" and self.count + len(frames) > 1:
            raise VideoError("a png holds one frame; use .mp4, .gif or .webp")
        for picture in frames:
            picture = np.pad(picture, ((0, self.odd[0]), (0, self.odd[1]), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = self.count, 1 / self.rate
            self.filters.vpush(frame)
            self.container.mux(self.stream.encode(self.filters.vpull()))
            self.count += 1

    def close(self):
        try:
            if self.count == 0:
                raise VideoError("no frames were written")
            self.container.mux(self.stream.encode(None))
        finally:
            self.container.close()
