"""How fast a host reads precomputed latents: python -m benchmarks.loader [batches]

Random latents and text features of the size of Wan's at 81 x 720 x 1280 are written as
`sora_jax.data.precompute` writes them, and read as a training run does, one clip a batch.
"""

import functools
import pathlib
import sys
import tempfile
import time

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.latent_records import Record, write_latents
from sora_jax.data.latents import LatentDataset
from sora_jax.data.loader import make_loader

BUCKET, LATENTS = Bucket(81, 720, 1280), (21, 90, 160, 16)
WORDS, WIDTH = 512, 4096
CLIPS = 24


def records(count: int):
    rng = np.random.default_rng(0)
    for clip in range(count):
        latents = rng.standard_normal(LATENTS, np.float32).astype(np.float16)
        text = rng.standard_normal((WORDS, WIDTH), np.float32).astype(np.float16)
        kind = "detailed"
        yield Record(latents, BUCKET, {kind: "a caption"}, "none", clip, 0, {kind: text})


def main(batches: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "latents"
        shards = {"train": [functools.partial(records, CLIPS)]}
        write_latents(folder, shards, LATENTS[-1], {"fps": 16.0}, np.zeros((1, WIDTH)))
        source = LatentDataset(folder, "train", text_length=WORDS)
        loader = make_loader(
            source, [BUCKET], batch_size=lambda bucket: 1, caption_weights={"detailed": 1.0}
        )
        size = sum(x.nbytes for x in next(loader).values())
        began = time.perf_counter()
        for _ in range(batches):
            next(loader)
        seconds = (time.perf_counter() - began) / batches
        loader.close()
    print(
        f"{1 / seconds:.1f} clips/s of {size / 2**20:.1f} MiB, {size / seconds / 2**20:.0f} MiB/s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
