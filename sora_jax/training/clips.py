"""What a run reads: its buckets, its clips, and the batches made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from sora_jax.buckets import Bucket, batch_size
from sora_jax.data.clips import ClipDataset
from sora_jax.data.latents import LatentDataset
from sora_jax.data.loader import Loader, make_loader
from sora_jax.data.source import ClipSource
from sora_jax.data.worlds.dissolves import Dissolves
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.models.sizes import is_counts
from sora_jax.training.placement import BatchSplit
from sora_jax.weights.settings import as_tuple


def option(config: ConfigDict, name: str, options: Mapping[str, Any]) -> Any:
    """The option that a setting of the config names.

    Raises:
      ValueError: it names none of them.
    """
    if config[name] not in options:
        raise ValueError(
            f"config.{name}={config[name]!r} is unknown; it is one of {sorted(options)}"
        )
    return options[config[name]]


def read_buckets(data: ConfigDict) -> list[Bucket]:
    """The buckets of `data`.

    Raises:
      ValueError: there is none, or one is not three numbers of at least 1.
    """
    shapes = as_tuple(data.buckets)
    if not isinstance(shapes, tuple) or not shapes:
        raise ValueError(
            f"config.data.buckets={shapes} must be a tuple of buckets, such as ((17, 64, 96),)"
        )
    for shape in shapes:
        if not is_counts(shape) or len(shape) != 3:
            raise ValueError(
                f"config.data.buckets has {shape}, which is no bucket: give frames, height and "
                "width, three whole numbers of at least 1, such as ((17, 64, 96),)"
            )
    return [Bucket(*shape) for shape in shapes]


def make_source(
    data: ConfigDict,
    buckets: Sequence[Bucket],
    *,
    held_out: bool,
    text_length: int | None = None,
    images: bool = False,
) -> ClipSource:
    """The clips of `data`: those of a dataset folder, or of the rendered world if it has none.

    Args:
      data: of a run's config.
      buckets: shapes that the rendered world has.
      held_out: the clips that training never draws.
      text_length: tokens of the text features to read beside latents; None for none.
      images: whether to read beside latents what the transformer sees of images.
    """
    split = "validation" if held_out else "train"
    if data.get("latents"):
        latents = LatentDataset(data.latents, split, text_length=text_length, images=images)
        latents.check_buckets(buckets)
        return latents
    if data.folder:
        return ClipDataset(data.folder, split, fps=data.fps)
    length = 64 * len(buckets) if held_out else data.clips
    weights = data.bucket_weights or None
    world = Shapes(length, buckets, weights, seed=1 if held_out else 0)
    return Dissolves(world, data.dissolves) if data.get("dissolves") else world


@dataclasses.dataclass
class Data:
    """What a run reads: its batches, held-out batches, the rate of its clips."""

    loader: Loader
    held_out: list[dict[str, np.ndarray]]
    fps: float


def make_data(
    config: ConfigDict,
    split: BatchSplit,
    *,
    spatial: int,
    temporal: int,
    tokenize: Any = None,
    text_length: int | None = None,
    look: Any = None,
    images: bool = False,
) -> Data:
    """Loaders of this host, and a fixed set of held-out batches in memory.

    Args:
      config: of the run.
      split: how devices share a batch.
      spatial, temporal: pixels of a side and frames that make one token.
      tokenize: caption to tokens, or None.
      text_length, images: see `make_source`.
      look: frames of a clip to what an image encoder takes of them, or None.

    Raises:
      ValueError, OSError: nothing to hold out, no clip for the buckets, or a batch that the
        devices cannot share.
    """
    data = config.data
    if data.held_out_batches < 1:
        raise ValueError(
            f"config.data.held_out_batches={data.held_out_batches}: a model is written with its "
            "scores; use at least 1"
        )
    buckets = read_buckets(data)

    def size(bucket: Bucket) -> int:
        clips = batch_size(
            bucket,
            token_budget=data.token_budget,
            most_clips=data.most_clips,
            multiple_of=split.multiple,
            spatial=spatial,
            temporal=temporal,
        )
        if clips % split.ways:
            raise ValueError(
                f"bucket {bucket}: a batch of {clips} clips, a multiple of {split.multiple} since "
                f"this run began, cannot be shared by {split.ways} parts of the mesh: let "
                f"config.mesh.data times config.mesh.fsdp divide {clips}, for example by more "
                "devices on config.mesh.context or config.mesh.tensor, or begin in another "
                "--workdir"
            )
        return clips

    common = {
        "batch_size": size,
        "tokenize": tokenize,
        "look": look,
        "caption_weights": dict(data.caption_weights),
        "parts": split.parts,
        "part_count": split.ways,
        "workers": data.workers,
    }
    reading = {"text_length": text_length, "images": images}
    source = make_source(data, buckets, held_out=False, **reading)
    loader = make_loader(
        source, buckets, seed=config.seed, caption_dropout=data.caption_dropout, **common
    )
    validation = make_loader(
        make_source(data, buckets, held_out=True, **reading),
        buckets,
        shuffle=False,
        epochs=1,
        **common,
    )
    held_out = [batch for batch, _ in zip(validation, range(data.held_out_batches))]
    validation.close()
    return Data(loader, held_out, source.fps)
