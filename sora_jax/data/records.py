"""Writes checked clips as a TFDS dataset of ArrayRecord files, with an index of their shapes."""

import contextlib
import functools
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.data.captions import KINDS
from sora_jax.data.decodable import Decodable
from sora_jax.progress import watched

INDEX = "index.jsonl"
SHAPE = ("frames", "fps", "duration", "height", "width")
_SHARD_BYTES = 256 << 20  # the writer holds one shard's clips in memory

Splits = Mapping[str, Sequence[Decodable]]


def write(
    output: Path, name: str, splits: Splits, groups: Mapping[str, str], report: dict[str, Any]
) -> None:
    """Builds beside `output`, and moves the result there when it is whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    try:
        builder = _Builder(name, splits, groups, work)
        build(builder)
        next(builder.written, None)  # past the last: ends the bar
        built = Path(builder.data_dir)
        with open(built / INDEX, "w", encoding="utf-8") as index:
            for split, chosen in splits.items():
                for each in chosen:
                    line = {"split": split, "file_name": each.clip.file_name, **_shape(each)}
                    index.write(json.dumps(line) + "\n")
        (built / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        if output.exists():
            output.rename(work / "replaced")
        built.rename(output)
    finally:
        if (work / "replaced").exists() and not output.exists():
            (work / "replaced").rename(output)
        shutil.rmtree(work, ignore_errors=True)


def build(builder: tfds.core.DatasetBuilder) -> None:
    """Lets a builder write its records.

    Raises:
      OSError: the disk refuses, which ArrayRecord says by a RuntimeError.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare()
    except RuntimeError as error:
        if "; writing " not in str(error):
            raise
        raise OSError(f"the dataset cannot be written: {error}") from error


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes given clips in their order, a shard at a time.

    Unlike GeneratorBasedBuilder, which needs TensorFlow to spill more than 1 GiB to disk, and then
    reads all of it back into memory to sort it.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # TFDS would look there for checksums of downloads

    def __init__(self, name: str, splits: Splits, groups: Mapping[str, str], folder: Path):
        self.name = name
        self._splits = splits
        self._groups = groups
        total = sum(map(len, splits.values()))
        self.written = watched(range(total), total, "written", "clip")
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = {
            "video": tfds.features.Tensor(shape=(), dtype=np.object_),
            "frames": np.int32,
            "fps": np.float32,
            "duration": np.float32,
            "height": np.int32,
            "width": np.int32,
            "captions": {kind: text for kind in KINDS},
            "file_name": text,
            "group": text,
            "metadata": text,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Captioned clips as encoded files, written by sora_jax.data.folder.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        return {
            split: [functools.partial(self._examples, shard) for shard in _shards(chosen)]
            for split, chosen in self._splits.items()
        }

    def _examples(self, shard: Sequence[Decodable]) -> Iterator[tuple[str, dict[str, Any]]]:
        for each, _ in zip(shard, self.written):
            clip = each.clip
            encoded = clip.path.read_bytes()
            if hashlib.sha256(encoded).hexdigest() != each.digest:
                raise ValueError(f"{clip.path} changed while the dataset was built: run again")
            yield (
                clip.file_name,
                {
                    "video": encoded,
                    **_shape(each),
                    "captions": {kind: clip.captions.get(kind, "") for kind in KINDS},
                    "file_name": clip.file_name,
                    "group": self._groups[clip.file_name],
                    "metadata": json.dumps(clip.metadata),
                },
            )


def _shape(each: Decodable) -> dict[str, float]:
    return {field: getattr(each.info, field) for field in SHAPE}


def _shards(chosen: Sequence[Decodable]) -> list[list[Decodable]]:
    """Consecutive clips, so many that each shard has about _SHARD_BYTES."""
    shards, room = [], 0
    for each in chosen:
        if each.size > room:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(each)
        room -= each.size
    return shards
