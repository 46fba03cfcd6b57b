"""Encodes the clips of a run once, so that its training runs neither VAE nor frozen text encoder.

python -m sora_jax.data.precompute --config=configs/NAME.py --output=FOLDER [--passes=N]
    [--config.KEY=VALUE ...]

Takes the config of a transformer: its clips, its buckets and the VAE that `config.vae` names. Each
clip is read at its bucket's exact shape, once for each pass: every pass draws another crop and
start time (validation has one pass). If `config.text_encoder` names a frozen text encoder, its
features of the captions are written too; if the transformer of `config.init` sees images beside the
noise, so is what it sees of each clip's own. Training takes them with --config.data.latents=FOLDER.
The output appears whole or not at all. Clips that cannot be read are reported and left out.
"""

import dataclasses
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sora_jax import command
from sora_jax.buckets import Bucket
from sora_jax.data.captions import KINDS
from sora_jax.data.clips import ClipDataset
from sora_jax.data.identity import image_identity, text_identity, vae_identity
from sora_jax.data.latent_records import Record, check_output, write_latents
from sora_jax.data.precompute_plan import Batch, check_distinct, choose, make_batches, make_files
from sora_jax.data.source import ClipSource
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import count_tokens
from sora_jax.progress import Progress
from sora_jax.training.clips import make_source, option, read_buckets
from sora_jax.training.frozen import (
    CaptionEncoder,
    Encoder,
    load_text_encoder,
    make_frame_encoder,
    make_image_reader,
    to_half,
)
from sora_jax.training.images import make_images, make_look
from sora_jax.training.inherit import inherit
from sora_jax.training.setup import DTYPES
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import LoadedVAE, load_vae
from sora_jax.weights.settings import from_settings

SPLITS = ("train", "validation")
_AHEAD = 4  # batches read at the same time and held ready
_LISTED = 20  # unreadable clips of a split that are printed too


def precompute(config: ConfigDict, output: str | Path, *, passes: int = 1) -> dict[str, Any]:
    """Writes the latents of a config's clips, and text features if its text encoder is frozen.

    Args:
      config: of a run of the transformer.
      output: a folder that does not exist yet.
      passes: how often each clip of `train` is read, each time at another crop and start time.

    Returns:
      The content of latents.json.

    Raises:
      ValueError, OSError: a config that cannot work, no usable clip, or there is such a folder.
    """
    output = Path(output)
    check_output(output)
    config = inherit(config)
    if passes < 1:
        raise ValueError(f"--passes={passes}: each clip is read at least once")
    if not isinstance(config.vae, str):
        raise ValueError("config.vae is no folder: give the config of a transformer")
    if config.data.get("latents"):
        raise ValueError(
            f"config.data.latents={config.data.latents} are latents already: leave it empty here"
        )
    made_with, vae = _load(vae_identity, load_vae, config.vae)
    text_made_with, text = _load_text(config) if config.text_encoder else (None, None)
    buckets = read_buckets(config.data)
    if config.seed < 0:  # which no clip could be drawn with
        raise ValueError(f"config.seed={config.seed} must not be negative")
    sees = config.get("dit", {}).get("image_channels")
    images = _load_images(config, vae, buckets) if sees else None
    for bucket in buckets:
        vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)
    check_distinct(buckets)

    def clip_bytes(bucket: Bucket) -> int:
        shape = vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)
        text_numbers = len(KINDS) * text.length * text.width if text else 0
        image_numbers = int(np.prod(shape)) + images.token_numbers if images else 0
        return 2 * (int(np.prod(shape)) + text_numbers + image_numbers)

    bar = Progress("encoded", "clip")
    encode = make_frame_encoder(vae, option(config, "dtype", DTYPES))
    splits = []
    for number, split in enumerate(SPLITS):
        source = make_source(config.data, buckets, held_out=split == "validation")
        splits.append(_Split(split, source, (config.seed, number), encode, text, images, bar))
    shards = {}
    for each in splits:
        repeats = passes if each.name == "train" else 1
        choice = choose(each.name, each.source, buckets)
        batches = make_batches(buckets, choice, repeats, jax.device_count())
        bar.total += sum(len(batch.clips) for batch in batches)
        files = make_files(batches, clip_bytes)
        shards[each.name] = [functools.partial(each.records, file) for file in files]
    description = {
        "vae": made_with,
        "text_encoder": text_made_with,
        "images": images.made_with if images else None,
        "fps": float(splits[0].source.fps),
        "seed": config.seed,
        "passes": passes,
        "buckets": list(map(str, buckets)),
        "unreadable": {each.name: each.unreadable for each in splits},  # filled while it writes
    }
    with bar:
        empty_text = text.empty() if text else None
        image_width = images.width if images else None
        write_latents(
            output, shards, vae.config.latent_channels, description, empty_text, image_width
        )
    return description


def _load(
    identify: Callable[[str], dict[str, Any]], load: Callable[[str], Any], folder: str
) -> tuple[dict[str, Any], Any]:
    """The identity of a network and the network; a training run may be writing the folder."""
    identity = identify(folder)
    network = load(folder)
    if identify(folder) != identity:
        raise ValueError(f"{folder} changed while it was read: run again when it is trained")
    return identity, network


def _load_text(config: ConfigDict) -> tuple[dict[str, Any], CaptionEncoder]:
    """The identity of a frozen text encoder and the encoder."""
    length = config.tokenizer.length
    identify = functools.partial(text_identity, length=length)
    identity, parts = _load(identify, load_text_encoder, config.text_encoder)
    return identity, CaptionEncoder(parts, length, option(config, "dtype", DTYPES))


class _Images(NamedTuple):
    """How images are read and encoded.

    Attributes:
      made_with: identity of what sees them.
      read: frames [F, H, W, 3] of a clip to the pixels of the image encoder; None without one.
      encode: see `make_image_reader`.
      width: of image tokens, 0 without.
      token_numbers: of a clip.
    """

    made_with: dict[str, Any]
    read: Callable[[np.ndarray], np.ndarray] | None
    encode: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
    width: int
    token_numbers: int


def _load_images(config: ConfigDict, vae: LoadedVAE, buckets: Sequence[Bucket]) -> _Images:
    """What the transformer of `config.init` sees of images."""
    channels = vae.config.latent_channels
    dit = from_settings(DiTConfig, {**config.dit, "latent_channels": channels})
    sizes, params = make_images(config, dit, buckets)
    reader = make_image_reader(dit, vae, sizes, params, option(config, "dtype", DTYPES))
    identity = image_identity(find_model(config.init), dit.sees_last)
    if sizes is None:
        return _Images(identity, None, reader, 0, 0)
    numbers = count_tokens(dit.image_positions, sizes) * sizes.width
    return _Images(identity, make_look(sizes, dit.sees_last), reader, sizes.width, numbers)


@dataclasses.dataclass
class _Split:
    """Reads and encodes the clips of a split; `unreadable` collects what failed, and why."""

    name: str
    source: ClipSource
    seed: tuple[int, int]
    encode: Encoder
    text: CaptionEncoder | None
    images: _Images | None
    bar: Progress
    unreadable: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def records(self, batches: Sequence[Batch]) -> Iterator[Record]:
        """What can be read of the batches, in their order."""
        pending = None
        for batch, arrays, records in self._read_ahead(batches):
            self.bar.advance(len(batch.clips))
            if not records:
                continue
            # All return before they are done.
            latents = self.encode(arrays["frames"])
            text = None
            if self.text:
                text = self.text.start([record.captions for record in records], batch.size)
            images = self.images.encode(arrays) if self.images else {}
            if pending:
                yield from self._done(*pending)
            pending = records, latents, text, images
        if pending:
            yield from self._done(*pending)

    def _done(
        self,
        records: Sequence[Record],
        latents: jax.Array,
        text: tuple[np.ndarray, jax.Array] | None,
        images: dict[str, jax.Array],
    ) -> Iterator[Record]:
        texts = self.text.finish(*text) if text else [{}] * len(records)
        seen = {name: np.asarray(x) for name, x in images.items()}
        for row, (record, one, features) in enumerate(zip(records, np.asarray(latents), texts)):
            of = f"clip {record.clip} of {self.name}"
            half = to_half(one, "VAE", of)
            shown = {name: to_half(x[row], "image encoder", of) for name, x in seen.items()}
            yield record._replace(latents=half, text=features, images=shown)

    def _read_ahead(
        self, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, dict[str, np.ndarray], list[Record]]]:
        """Batches with `frames` uint8 [size, F, H, W, 3], whose first are those of the records.

        With an image encoder there are `pixels` of them too.
        """
        options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        reading = iter(grain.MapDataset.source(batches).map(self._read).to_iter_dataset(options))
        try:
            for batch, arrays, records, failed in reading:
                for failure in failed:
                    self.unreadable.append(failure)
                    if len(self.unreadable) <= _LISTED:
                        self.bar.say(
                            f"{self.name}: clip {failure['clip']} {failure['file_name']} cannot "
                            f"be read and is left out: {failure['reason']}"
                        )
                yield batch, arrays, records
        finally:
            reading.close()

    def _read(
        self, batch: Batch
    ) -> tuple[Batch, dict[str, np.ndarray], list[Record], list[dict[str, Any]]]:
        bucket = batch.bucket
        frames = np.zeros((batch.size, bucket.frames, bucket.height, bucket.width, 3), np.uint8)
        records, failed = [], []
        for clip, draw in zip(map(int, batch.clips), map(int, batch.draws)):
            name = ""
            try:
                if isinstance(self.source, ClipDataset):
                    name = self.source.file_name(clip)
                rng = np.random.default_rng((*self.seed, draw, clip))
                read = self.source.read(clip, bucket, rng)
                frames[len(records)] = read["frames"]
            except Exception as error:  # whatever a decoder makes of damaged bytes
                reason = f"{type(error).__name__}: {error}"
                failed.append({"clip": clip, "file_name": name, "reason": reason})
                continue
            records.append(Record(None, bucket, read["captions"], name, clip, draw, {}))
        arrays = {"frames": frames}
        if self.images and self.images.read:
            arrays["pixels"] = np.stack([self.images.read(each) for each in frames])
        return batch, arrays, records, failed


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    logging.set_verbosity(logging.WARNING)  # TFDS announces every step
    tfds.disable_progress_bar()
    # As an exception, which removes what is half done.
    signal.signal(signal.SIGTERM, lambda *_: command.fail("terminated; nothing was written"))
    values = flags.FLAGS
    try:
        description = precompute(values.config, values.output, passes=values.passes)
    except (OSError, ValueError) as error:
        command.fail(error)
    for split, unreadable in description["unreadable"].items():
        if unreadable:
            print(f"{split}: {len(unreadable)} reads failed, see latents.json", file=sys.stderr)
    print(f"wrote {values.output}")


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
    flags.DEFINE_string("output", None, "Folder of the latents.")
    flags.DEFINE_integer("passes", 1, "How often each clip is read, cropped anew each time.")
    flags.mark_flags_as_required(["config", "output"])


if __name__ == "__main__":
    _define_flags()  # not on import: other commands have flags of the same names
    command.run(main)
