"""Clips of no content for the loader's tests, and short ways to read them."""

import itertools

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.loader import make_loader

IMAGE, WIDE, TALL = Bucket(1, 16, 32), Bucket(5, 16, 32), Bucket(5, 32, 16)
BUCKETS = (IMAGE, WIDE, TALL)
BATCH = {IMAGE: 8, WIDE: 4, TALL: 4}


class FakeClips:
    """Clips whose pixels tell which clip they are (channel 0) and what was drawn (channel 1)."""

    fps = 8.0

    def __init__(self, counts, broken=(), captions=None):
        self.shapes = np.concatenate(
            [
                np.tile((bucket.frames, bucket.height, bucket.width), (count, 1))
                for bucket, count in zip(BUCKETS, counts)
            ]
        ).astype(np.int32)
        self.broken = set(broken)
        self.captions = captions or {"short": "s", "detailed": "d"}

    def __len__(self):
        return len(self.shapes)

    def read(self, index, bucket, rng):
        drawn = rng.integers(256)
        if index in self.broken:
            raise OSError(f"damaged bytes in clip {index}")
        frames = np.zeros((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
        frames[..., 0], frames[..., 1] = index, drawn
        return {"frames": frames, "captions": self.captions}


def letters(caption):
    """The characters, up to 8."""
    return np.array([ord(letter) for letter in caption.ljust(8)[:8]])


def load(source, **changes):
    options = {
        "batch_size": BATCH.get,
        "tokenize": letters,
        "caption_weights": {"short": 0.3, "detailed": 0.7},
        "caption_dropout": 0.1,
        "seed": 3,
        "prefetch": 2,
    }
    return make_loader(source, BUCKETS, **{**options, **changes})


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def clips_of(batch):
    return batch["frames"][:, 0, 0, 0, 0].tolist()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
