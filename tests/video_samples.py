"""Small videos whose frames can be told apart, and files as other programs write them."""

import fractions
import io

import av
import numpy as np

HEIGHT, WIDTH = 48, 64
COLORS = [(200, 30, 60), (20, 220, 90), (40, 50, 230), (255, 255, 255), (0, 0, 0)]
CORNERS = np.zeros((1, 32, 64, 3), np.uint8)  # red, green; below blue, black
CORNERS[0, :16, :32] = (255, 0, 0)
CORNERS[0, :16, 32:] = (0, 255, 0)
CORNERS[0, 16:, :32] = (0, 0, 255)


def numbered(count: int) -> np.ndarray:
    """uint8 [count, 48, 64, 3]: each frame shows its own number as eight black or white blocks.

    Below them patches of colour move to the right.
    """
    patches = np.random.default_rng(0).integers(60, 190, (3, 8, 3)).repeat(8, 0).repeat(8, 1)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for index in range(count):
        for bit in range(8):
            frames[index, :24, 8 * bit : 8 * bit + 8] = 235 if index >> bit & 1 else 20
        frames[index, 24:] = np.roll(patches, index, axis=1)
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    blocks = frames[:, 4:20].reshape(len(frames), 16, 8, 8, 3).mean((1, 3, 4))
    return [int(((row > 128) << np.arange(8)).sum()) for row in blocks]


def make(
    frames, container, codec, pixels, *, rate=25, times=None, options=None, setup=None, **color
) -> bytes:
    """A file as other programs write them. `times` are the frames' milliseconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        base = fractions.Fraction(1, 1000 if times else rate)
        stream.codec_context.time_base = base
        for name, value in color.items():
            setattr(stream.codec_context, name, value)
        if setup:
            setup(stream)
        for index, picture in enumerate(frames):
            given = "rgba" if frames.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=given).reformat(
                format=pixels,
                dst_colorspace=color.get("colorspace"),
                dst_color_range=color.get("color_range"),
            )
            frame.pts, frame.time_base = times[index] if times else index, base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def flat(color, count=3) -> np.ndarray:
    return np.broadcast_to(np.uint8(color), (count, HEIGHT, WIDTH, len(color)))


def difference(a, b) -> int:
    return int(np.abs(np.int32(a) - np.int32(b)).max())


def psnr(a, b) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((np.float64(a) - b) ** 2)))


def jpeg(frames) -> bytes:
    return make(frames, "mjpeg", "mjpeg", "yuvj444p", options={"qmin": "1", "qmax": "1"})
