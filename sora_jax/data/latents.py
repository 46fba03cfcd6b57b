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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sora_jax.buckets import Bucket
from sora_jax.data.captions import stored_captions
from sora_jax.data.identity import COMMAND, read_description
from sora_jax.data.latent_records import EMPTY_TEXT, shapes_file
from sora_jax.data.source import ClipSource

IMAGES = ("image_latents", "image_tokens")  # of a record, see above


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
        splits = self._builder().info.splits
        if split not in splits:
            raise ValueError(f"{path} has no split {split!r}, only {', '.join(splits)}")
        count = splits[split].num_examples
        file = shapes_file(self.path, split)
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

    def _builder(self) -> Any:
        try:
            return tfds.builder_from_directory(self.path)
        except Exception as error:  # of many classes
            raise ValueError(
                f"the dataset in {self.path} cannot be read ({error}): make the latents again: "
                f"{COMMAND}{self.path}"
            ) from error

    def _record(self, index: int) -> dict[str, Any]:
        if self._records is None:  # opened where it is read: in a worker process, if there are any
            self._records = self._builder().as_data_source(self.split)
        try:
            return self._records[index]
        except Exception as error:  # whatever the reader makes of damaged bytes
            raise ValueError(
                f"{self!r}: record {index} cannot be read ({error}): make the latents again: "
                f"{COMMAND}{self.path}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None}

    def __repr__(self) -> str:
        return f"LatentDataset({str(self.path)!r}, {self.split!r})"

    def __len__(self) -> int:
        return len(self.shapes)

    def captions(self, index: int) -> dict[str, str]:
        """See `ClipSource.captions`."""
        return stored_captions(self._record(index))

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
        captions = stored_captions(record)
        clip = {"latents": record["latents"].astype(np.float32), "captions": captions}
        if self._text_length is not None:
            text = {kind: self._pad(record["text"][kind]) for kind in captions}
            clip["text"] = {**text, "": self._empty_text}
        if self._images:
            clip |= {name: record[name] for name in IMAGES if name in record}
        return clip
