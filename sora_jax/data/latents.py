"""Precomputed latents: a TFDS dataset in ArrayRecord, and that as a source for the loader.

A record has `latents` float16 [T, h, w, C], normalised; `frames`, `height` and `width` of the
pixels they encode, which is the shape of a bucket; `captions` (`short` and `detailed`, empty where
there is none); `file_name`, or nothing for a rendered clip; `clip`, the clip's number in its
source; and `draw`, which of several random crops and start times it is. Beside the records are
latents.json, which names the VAE, and shapes_SPLIT.npy, the shapes of the records in their order.

Where a frozen text encoder read the captions too, a record has its features of each caption, `text`
float16 [l, D] up to the caption's end, and empty_text.npy has those of the empty caption.

Where the transformer sees images beside the noise, a record has what it sees of the clip's own:
`image_latents` float16 [T, h, w, C] (see `sora_jax.models.image_latents`) and, if it reads image
tokens, `image_tokens` float16 [M, D].

`tfds.builder_from_directory(FOLDER).as_data_source(SPLIT)` reads it too. TensorFlow is not needed.
"""

import contextlib
import functools
import io
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
from sora_jax.data.identity import COMMAND, DESCRIPTION, FORMAT, read_description
from sora_jax.data.source import ClipSource

EMPTY_TEXT = "empty_text.npy"
IMAGES = ("image_latents", "image_tokens")  # of a record, see above


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
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare()
        built = Path(builder.data_dir)
        for split, files in builder.shapes.items():
            shapes = [shape for file in files for shape in file]
            if not shapes:
                raise ValueError(f"no clip of the split {split!r} could be read: see above why")
            np.save(_shapes_file(built, split), np.array(shapes, np.int32))
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


def _shapes_file(path: Path, split: str) -> Path:
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


class LatentDataset(ClipSource):
    """Latents that `sora_jax.data.precompute` wrote, as a source for the loader.

    Args:
      path: the dataset's folder.
      split: "train" or "validation".
      text_length: rows of the text features that `read` gives, zeros after a caption's end; None to
        read no text features.
      images: whether `read` gives what the transformer sees of images.

    Attributes:
      fps: frame rate of the clips that were encoded.
      shapes: int32 [len, 3], pixel frames, height and width of each record's bucket.

    Raises:
      FileNotFoundError: there are no latents at `path`.
      ValueError: `path` has no such split, no text features that are asked for, or is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        text_length: int | None = None,
        images: bool = False,
    ):
        self.path, self.split, self._images = Path(path), split, images
        self._text_length = text_length
        self._records = None
        self.fps = float(read_description(self.path)["fps"])
        splits = tfds.builder_from_directory(self.path).info.splits
        if split not in splits:
            raise ValueError(f"{path} has no split {split!r}, only {', '.join(splits)}")
        count = splits[split].num_examples
        file = _shapes_file(self.path, split)
        self.shapes = self._load(file)
        if text_length is not None:
            self._empty_text = self._pad(self._load(self.path / EMPTY_TEXT))
        if self.shapes.shape != (count, 3):
            raise ValueError(
                f"{file} describes {len(self.shapes)} records, and there are {count}: make the "
                f"latents again: {COMMAND}{path}"
            )

    def check_buckets(self, buckets: Sequence[Bucket]) -> None:
        """Raises ValueError if there are records of a shape that is none of `buckets`.

        Their crops are made, so no other bucket could take them.
        """
        others = {Bucket(*map(int, shape)) for shape in np.unique(self.shapes, axis=0)}
        others -= set(buckets)
        if others:
            names = ", ".join(sorted(str(bucket) for bucket in others))
            raise ValueError(
                f"the latents in {self.path} hold clips of {names}, which config.data.buckets "
                f"lacks: use the buckets that they were made with, or make them again: "
                f"{COMMAND}..."
            )

    def _load(self, file: Path) -> np.ndarray:
        try:
            return np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{file} cannot be read ({error}): make the latents again: {COMMAND}{self.path}"
            ) from error

    def _pad(self, text: np.ndarray) -> np.ndarray:
        """Features [l, D] to [text_length, D]."""
        return np.pad(text, ((0, self._text_length - len(text)), (0, 0)))

    def _record(self, index: int) -> dict[str, Any]:
        if self._records is None:  # opened where it is read: in a worker process, if there are any
            builder = tfds.builder_from_directory(self.path)
            self._records = builder.as_data_source(self.split)
        return self._records[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None}

    def __repr__(self) -> str:
        return f"LatentDataset({str(self.path)!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self.shapes)

    def captions(self, index: int) -> dict[str, str]:
        """See `ClipSource.captions`."""
        return _captions(self._record(index))

    def read(self, index: int, bucket: Bucket, rng: np.random.Generator) -> dict[str, Any]:
        """Latents float32 [T, h, w, C], captions and, if asked for, text features of each.

        Features are float16 [text_length, D] by kind; the kind "" has those of the empty caption.
        What there is of images, if it is asked for, is float16.
        `rng` is not used: the crops are made.
        """
        made = Bucket(*map(int, self.shapes[index]))
        if made != bucket:
            raise ValueError(
                f"{self!r}: clip {index} was encoded at {made} and cannot be read at {bucket}: "
                "train with the buckets of the precomputation, or make the latents again"
            )
        record = self._record(index)
        captions = _captions(record)
        clip = {"latents": record["latents"].astype(np.float32), "captions": captions}
        if self._text_length is not None:
            text = {kind: self._pad(record["text"][kind]) for kind in captions}
            clip["text"] = {**text, "": self._empty_text}
        if self._images:
            clip |= {name: record[name] for name in IMAGES if name in record}
        return clip


def _captions(record: Mapping[str, Any]) -> dict[str, str]:
    return {kind: text.decode() for kind, text in record["captions"].items() if text}
