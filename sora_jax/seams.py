"""Where frames that are given meet frames that are made, and one video meets another.

The VAE never shows a frame quite as it is, so a video that went over from given frames to decoded
ones would change its tint and its sharpness from one frame to the next. What the VAE got wrong
about the last given frame is taken off the made ones too, less and less.
"""

import numpy as np

FADE = 4  # made frames over which it fades


def fade_in(made: np.ndarray, shown: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Made frames that follow a given one.

    Args:
      made: uint8 [..., F, H, W, 3].
      shown: the given frame as the VAE shows it, uint8 [..., H, W, 3].
      given: the given frame itself, uint8 [H, W, 3].
    """
    weight = np.maximum(0, 1 - (np.arange(made.shape[-4]) + 1) / (FADE + 1))
    error = given.astype(np.float32) - shown
    frames = made + weight.reshape(-1, 1, 1, 1).astype(np.float32) * error[..., None, :, :, :]
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def fade_out(made: np.ndarray, shown: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Made frames that lead up to a given one; see `fade_in`."""
    return fade_in(made[..., ::-1, :, :, :], shown, given)[..., ::-1, :, :, :]


def dissolve(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Two clips laid over each other: uint8 [F, H, W, 3].

    Args:
      first, second: uint8 [F, H, W, 3].
      share: of the second one in each frame, [F].
    """
    share = share.reshape(-1, 1, 1, 1).astype(np.float32)
    return ((1 - share) * first + share * second + 0.5).astype(np.uint8)


def changes(video: np.ndarray) -> np.ndarray:
    """Mean absolute change of a pixel from each frame to the next, [F - 1]."""
    return np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))


def jumps(video: np.ndarray) -> np.ndarray:
    """The changes from each frame to the next, [F - 1], over their median.

    1 is a seam that nobody can find. In a video that stands still, changes count as if the usual
    one were a quarter of a grey level.
    """
    every = changes(video)
    return every / max(np.median(every), 0.25)


def jump(video: np.ndarray, seam: int) -> float:
    """That of `jumps` into frame `seam`."""
    return float(jumps(video)[seam - 1])
