"""The pixels that an image encoder takes, resized as Pillow does it; where data is read: no jax."""

from typing import NamedTuple

import numpy as np

# Of what Pillow's resizing computes with: 8 bits of a pixel, 22 of a weight.
_BITS = 22


class Taken(NamedTuple):
    """What an image encoder takes: fields of `image.ImageConfig`, for processes that read data."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def seen_places(frames: int, *, last: bool) -> tuple[int, ...]:
    """Where a transformer in training sees images of a clip of so many frames: first, and last."""
    return (0, frames - 1) if last else (0,)


def prepare_seen(frames: np.ndarray, config: Taken, last: bool) -> np.ndarray:
    """What `prepare` makes of the frames of a clip at `seen_places`: float32 [n, side, side, 3].

    Args:
      frames: uint8 [F, H, W, 3].
      config: of the encoder.
      last: see `DiTConfig.sees_last`.
    """
    return np.stack([prepare(frames[at], config) for at in seen_places(len(frames), last=last)])


def prepare(image: np.ndarray, config: Taken) -> np.ndarray:
    """An image uint8 [H, W, 3] as the encoder takes it: float32 [side, side, 3].

    The shorter side is brought to `side`, and what is then too much of the longer one cut off.
    """
    side, (height, width) = config.side, image.shape[:2]
    short = min(height, width)
    image = resize(image, side * height // short, side * width // short)
    top, left = ((size - side) // 2 for size in image.shape[:2])
    image = image[top : top + side, left : left + side]
    return (image / np.float32(255) - np.float32(config.mean)) / np.float32(config.std)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resizing of uint8 [H, W, 3], equal to Pillow's in every bit.

    Like Pillow's it reads over a wider range where an image gets smaller, takes widths first,
    rounds to 8 bits, and computes with whole numbers: float64 holds them exactly.
    """
    x = np.float64(image)
    for axis, size in ((1, width), (0, height)):
        if x.shape[axis] != size:
            sums = np.tensordot(_weights(x.shape[axis], size), x, axes=(1, axis))
            sums = np.clip(np.floor(sums / 2**_BITS + 0.5), 0, 255)
            x = np.moveaxis(sums, 0, axis)
    return x.astype(np.uint8)


def _weights(size: int, new_size: int) -> np.ndarray:
    """Of each old pixel in each new one, float64 [new, old], whole numbers that add to 2^22."""
    factor = size / new_size
    scale = max(factor, 1.0)
    weights = np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * factor
        # Pixels whose middle lies within two, of the wider scale, of the middle of the new one.
        low = max(0, int(centre - 2 * scale + 0.5))
        high = min(size, int(centre + 2 * scale + 0.5))
        x = np.abs((np.arange(low, high) - centre + 0.5) / scale)
        # The cubic of Keys (1981) with a = -0.5.
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        row = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[i, low:high] = row / row.sum()
    return np.trunc(weights * 2**_BITS + np.copysign(0.5, weights))
