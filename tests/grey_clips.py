"""Clips whose frames tell their numbers by their brightness, as files and as a dataset."""

import pathlib

import numpy as np

from sora_jax import video_io
from sora_jax.data import folder

HEIGHT, WIDTH = 32, 48


def moving(frames: int) -> np.ndarray:
    """Frame i is grey of level 8 i, so that a decoded frame tells its number."""
    levels = (8 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    return np.broadcast_to(levels, (frames, HEIGHT, WIDTH, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean(axis=(1, 2, 3)) / 8).astype(int).tolist()


def write_dataset(root: pathlib.Path, held_out: float = 0.0) -> pathlib.Path:
    """A dataset of the folder `clips` beside it.

    20 frames at 10 frames a second, and an image that is brighter to the right.
    """
    (root / "clips").mkdir()
    (root / "clips" / "a.mp4").write_bytes(video_io.encode(moving(20), fps=10))
    (root / "clips" / "a.txt").write_text("it brightens")
    columns = np.linspace(0, 255, WIDTH, dtype=np.uint8)[None, :, None]
    video_io.write(root / "clips" / "b.png", np.broadcast_to(columns, (HEIGHT, WIDTH, 3)).copy())
    folder.build(root / "clips", root / "dataset", held_out=held_out)
    return root / "dataset"
