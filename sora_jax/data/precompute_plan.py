"""Which clips precomputing encodes together, and which of them share a file."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sora_jax.buckets import Bucket, assign_all
from sora_jax.data.source import ClipSource

_FILE_BYTES = 256 << 20  # the writer holds one file's records in memory
_BATCH_PIXELS = 1 << 20  # of a batch and device: bounds the memory of the encoder
_BATCH_CLIPS = 32  # of a batch and device


class Batch(NamedTuple):
    """Clips of one bucket to encode together, `clips` and `draws` int [n], padded to `size`."""

    bucket: Bucket
    clips: np.ndarray
    draws: np.ndarray
    size: int


def check_distinct(buckets: Sequence[Bucket]) -> None:
    """Refuses buckets so alike that latents of one would be taken for clips of another."""
    shapes = np.array([(b.frames, b.height, b.width) for b in buckets])
    for number, choice in enumerate(assign_all(buckets, shapes).choice):
        if choice != number:
            raise ValueError(
                f"buckets {buckets[number]} and {buckets[choice]} are too alike for latents: "
                "leave one of them out of config.data.buckets"
            )


def choose(split: str, source: ClipSource, buckets: Sequence[Bucket]) -> np.ndarray:
    """The number of each clip's bucket, or -1, as the loader chooses it."""
    assignment = assign_all(buckets, source.shapes)
    reasons = "; ".join(f"{count} {why}" for why, count in assignment.unassigned.items())
    if (assignment.choice < 0).all():
        raise ValueError(
            f"none of the {len(source)} clips of {split} fits any of the buckets "
            f"{', '.join(map(str, buckets))}: {reasons or 'there are none'}"
        )
    if reasons:
        print(f"{split}: clips that fit no bucket: {reasons}", file=sys.stderr)
    return assignment.choice


def make_batches(
    buckets: Sequence[Bucket], choice: np.ndarray, passes: int, devices: int
) -> list[Batch]:
    """Every clip once for each pass, bucket by bucket, and in its order.

    Args:
      buckets: the shapes.
      choice: int [clips], from `choose`.
      passes: how often each clip is read.
      devices: that share a batch, whose size is a multiple of them.
    """
    batches = []
    for number, bucket in enumerate(buckets):
        clips = np.tile(np.flatnonzero(choice == number), passes)
        draws = np.repeat(np.arange(passes), len(clips) // passes)
        pixels = bucket.frames * bucket.height * bucket.width
        # As large as memory allows, but no larger than there are clips.
        most = max(min(_BATCH_PIXELS // pixels, _BATCH_CLIPS), 1)
        size = devices * min(most, -(-len(clips) // devices) or 1)
        for start in range(0, len(clips), size):
            part = slice(start, start + size)
            batches.append(Batch(bucket, clips[part], draws[part], size))
    return batches


def make_files(batches: Sequence[Batch], clip_bytes: Callable[[Bucket], int]) -> list[list[Batch]]:
    """Consecutive batches, so many that each file has about _FILE_BYTES.

    Args:
      batches: in their order.
      clip_bytes: what a clip of a bucket takes on disk.
    """
    files, room = [], 0
    for batch in batches:
        if room <= 0:
            files.append([])
            room = _FILE_BYTES
        files[-1].append(batch)
        room -= len(batch.clips) * clip_bytes(batch.bucket)
    return files
