"""A dataset that `sora_jax.data.folder` wrote, as a source for the loader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from sora_jax import video_io
from sora_jax.buckets import Bucket
from sora_jax.data.captions import stored_captions
from sora_jax.data.records import INDEX, SHAPE
from sora_jax.data.source import ClipSource

_SLACK = 1e-3  # of a frame, for rounding


class ClipDataset(ClipSource):
    """Encoded clips and their captions, decoded when they are read.

    Args:
      path: the dataset's folder.
      split: "train" or "validation".
      fps: frame rate of the clips that `read` returns. Of faster clips it skips frames, of slower
        ones it repeats them.

    Raises:
      FileNotFoundError: there is no dataset at `path`.
      ValueError: `path` has no such split or is another kind of dataset, or `fps` is not positive.
    """

    def __init__(self, path: str | Path, split: str = "train", *, fps: float):
        if not fps > 0:
            raise ValueError(f"fps={fps} must be positive")
        self.path, self.split, self.fps = Path(path), split, fps
        self._records = None
        if not (self.path / "dataset_info.json").is_file():
            raise FileNotFoundError(
                f"no dataset at {path}: python -m sora_jax.data.folder --clips=... --output={path}"
            )
        info = tfds.builder_from_directory(self.path).info
        if missing := {"video", "captions", *SHAPE} - set(info.features):
            raise ValueError(
                f"{path} is a dataset without {', '.join(sorted(missing))}: "
                "write it with python -m sora_jax.data.folder"
            )
        if split not in info.splits:
            raise ValueError(
                f"{path} has no split {split!r}, only {', '.join(info.splits)}: build it again "
                "with a larger --held_out, or from more clips"
            )
        table = self._index(info.splits[split].num_examples)
        frames, native, duration, height, width = table.T
        count = np.where(frames == 1, 1, np.maximum(np.floor(duration * fps + _SLACK), 1))
        self.shapes = np.stack([count, height, width], axis=1).astype(np.int32)
        slower = int(np.sum((frames > 1) & (native < fps * 0.99)))
        if slower:
            logging.warning(
                "%s: %d of %d clips have fewer than %g frames a second; frames will repeat",
                *(self.path, slower, len(table), fps),
            )

    def _index(self, count: int) -> np.ndarray:
        """frames, fps, duration, height, width of each record, float64 [count, 5]."""
        try:
            with open(self.path / INDEX, encoding="utf-8") as lines:
                rows = [row for row in map(json.loads, lines) if row["split"] == self.split]
            shapes = [[row[field] for field in SHAPE] for row in rows]
            fault = f"{len(rows)} records of {count}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            shapes, fault = [], type(error).__name__
        if len(shapes) != count:
            logging.warning(
                "%s: no usable index (%s); reading all %d records instead. Build the dataset again "
                "to spare this.",
                *(self.path / INDEX, fault, count),
            )
            records = map(self._record, range(count))
            shapes = [[record[field] for field in SHAPE] for record in records]
        return np.array(shapes, np.float64)

    def _record(self, index: int) -> dict[str, Any]:
        if self._records is None:  # opened where it is read: in a worker process, if there are any
            builder = tfds.builder_from_directory(self.path)
            self._records = builder.as_data_source(self.split)
        return self._records[index]

    def __repr__(self) -> str:
        return f"ClipDataset({str(self.path)!r}, {self.split!r}, fps={self.fps})"

    def __len__(self) -> int:
        return len(self.shapes)

    def captions(self, index: int) -> dict[str, str]:
        """See `ClipSource.captions`."""
        return stored_captions(self._record(index))

    def file_name(self, index: int) -> str:
        """Path of clip `index` within the folder that the dataset was made of."""
        return self._record(index)["file_name"].decode()

    def read(self, index: int, bucket: Bucket, rng: np.random.Generator) -> dict[str, Any]:
        """See `ClipSource.read`. The clip starts at one of its frames, all equally likely."""
        if bucket.frames > self.shapes[index, 0]:
            raise ValueError(
                f"{self!r}: clip {index} has {self.shapes[index, 0]} frames, too few for bucket "
                f"{bucket}; `sora_jax.buckets.assign` chooses one that it fills"
            )
        record = self._record(index)
        native, duration = float(record["fps"]), float(record["duration"])
        latest = duration - (bucket.frames - 1) / self.fps - 1 / native
        start = rng.integers(int(max(latest, 0) * native + _SLACK) + 1) / native
        frames = video_io.decode(
            record["video"],
            start=start,
            frames=bucket.frames,
            fps=self.fps,
            size=(bucket.height, bucket.width),
            crop=tuple(rng.random(2)),
        )
        return {"frames": frames, "captions": stored_captions(record)}
