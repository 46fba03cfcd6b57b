"""Writes precomputed latents as a TFDS dataset in ArrayRecord; what it holds: see `latents`."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.buckets import Bucket
from sora_jax.data.captions import KINDS
from sora_jax.data.identity import DESCRIPTION, FORMAT
from sora_jax.data.records import build

EMPTY_TEXT = "empty_text.npy"


class Record(NamedTuple):
    """One clip: latents [T, h, w, C], the bucket it was read at, and where it is from.

    `text` has features [l, D] of each caption, or nothing where there is no frozen text encoder;
    `images` the arrays by name of what the transformer sees of images, if it sees any.
    """

    latents: np.ndarray
    bucket: Bucket
    captions: Mapping[str, str]
    file_name: str
    clip: int
    draw: int
    text: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray] = {}


# Of each split its files, each as a function that gives the records when it is called.
Shards = Mapping[str, Sequence[Callable[[], Iterator[Record]]]]


def write_latents(
    output: Path,
    shards: Shards,
    channels: int,
    description: Mapping[str, Any],
    empty_text: np.ndarray | None = None,
    image_width: int | None = None,
) -> None:
    """Builds beside `output`, and moves the result there when it is whole.

    Args:
      output: a folder that does not exist yet, or is empty.
      shards: the records; one file's are held in memory at a time.
      channels: of the latents.
      description: JSON values for latents.json, which is written last: `vae` and `text_encoder`
        (see `sora_jax.data.identity`), `fps` and what is worth knowing.
      empty_text: features [l, D] of the empty caption; None for records without text features.
      image_width: of image tokens; 0 for image latents without tokens, None for records without
        images.

    Raises:
      FileExistsError: there is something at `output`.
      ValueError: a split without a record.
    """
    output = Path(output).resolve()
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    try:
        text_width = None if empty_text is None else empty_text.shape[1]
        builder = _Builder(shards, channels, text_width, image_width, work)
        build(builder)
        built = Path(builder.data_dir)
        for split, files in builder.shapes.items():
            shapes = [shape for file in files for shape in file]
            if not shapes:
                raise ValueError(f"no clip of the split {split!r} could be read: see above why")
            np.save(shapes_file(built, split), np.array(shapes, np.int32))
        if empty_text is not None:
            np.save(built / EMPTY_TEXT, np.asarray(empty_text, np.float16))
        content = json.dumps({"format": FORMAT, **description}, indent=1)
        (built / DESCRIPTION).write_text(content, encoding="utf-8")
        built.rename(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_output(output: Path) -> None:
    """Raises FileExistsError where there is something already."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists: remove it, or name another folder")


def shapes_file(path: Path, split: str) -> Path:
    """Where the shapes of a split's records are, int32 [len, 3]."""
    return path / f"shapes_{split}.npy"


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the records file by file, and keeps their shapes."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look there for checksums of downloads
    name = "latents"

    def __init__(
        self,
        shards: Shards,
        channels: int,
        text_width: int | None,
        image_width: int | None,
        folder: Path,
    ):
        self._shards = shards
        self._channels = channels
        self._text_width = text_width
        self._image_width = image_width
        self.shapes = {split: [[] for _ in files] for split, files in shards.items()}
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        latents = tfds.features.Tensor(
            shape=(None, None, None, self._channels), dtype=np.float16, encoding="bytes"
        )
        features = {
            "latents": latents,
            "frames": np.int32,
            "height": np.int32,
            "width": np.int32,
            "captions": {kind: text for kind in KINDS},
            "file_name": text,
            "clip": np.int64,
            "draw": np.int32,
        }
        if self._text_width is not None:
            of_one = tfds.features.Tensor(
                shape=(None, self._text_width), dtype=np.float16, encoding="bytes"
            )
            features["text"] = {kind: of_one for kind in KINDS}
        if self._image_width is not None:
            features["image_latents"] = latents
        if self._image_width:
            features["image_tokens"] = tfds.features.Tensor(
                shape=(None, self._image_width), dtype=np.float16, encoding="bytes"
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned latents of clips, written by sora_jax.data.precompute.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        return {
            split: [
                functools.partial(self._examples, records, shapes)
                for records, shapes in zip(files, self.shapes[split], strict=True)
            ]
            for split, files in self._shards.items()
        }

    def _examples(
        self, records: Callable[[], Iterator[Record]], shapes: list[tuple[int, int, int]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for record in records():
            shape = (record.bucket.frames, record.bucket.height, record.bucket.width)
            shapes.append(shape)
            example = {
                "latents": np.asarray(record.latents, np.float16),
                **dict(zip(("frames", "height", "width"), shape)),
                "captions": {kind: record.captions.get(kind, "") for kind in KINDS},
                "file_name": record.file_name,
                "clip": record.clip,
                "draw": record.draw,
            }
            if self._text_width is not None:
                none = np.zeros((0, self._text_width))
                example["text"] = {
                    kind: np.asarray(record.text.get(kind, none), np.float16) for kind in KINDS
                }
            example |= {name: np.asarray(x, np.float16) for name, x in record.images.items()}
            yield f"{record.clip}_{record.draw}", example
