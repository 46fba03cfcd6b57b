"""Encodes the clips of a run once, so that its training runs neither VAE nor frozen text encoder.

python -m sora_jax.data.precompute --config=configs/NAME.py --output=FOLDER [--passes=N]
    [--config.KEY=VALUE ...]

Takes the config of a transformer: its clips, its buckets and the VAE that `config.vae` names. Each
clip is read at its bucket's exact shape, once for each pass: every pass draws another crop and
start time (validation has one pass). If `config.text_encoder` names a frozen text encoder, its
features of the captions are written too. Training takes them with --config.data.latents=FOLDER. The
output appears whole or not at all. Clips that cannot be read are reported and left out.
"""

import dataclasses
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sora_jax import command
from sora_jax.buckets import Bucket
from sora_jax.data.captions import KINDS
from sora_jax.data.folder import ClipDataset
from sora_jax.data.identity import text_identity, vae_identity
from sora_jax.data.latents import Record, check_output, write_latents
from sora_jax.data.precompute_plan import Batch, check_distinct, choose, make_batches, make_files
from sora_jax.data.source import ClipSource
from sora_jax.progress import Progress
from sora_jax.training.clips import make_source, option, read_buckets
from sora_jax.training.frozen import (
    CaptionEncoder,
    Encoder,
    load_text_encoder,
    make_frame_encoder,
    to_half,
)
from sora_jax.training.inherit import inherit
from sora_jax.training.setup import DTYPES
from sora_jax.weights.parts import load_vae

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
    for bucket in buckets:
        vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)
    check_distinct(buckets)

    def clip_bytes(bucket: Bucket) -> int:
        shape = vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)
        text_numbers = len(KINDS) * text.length * text.width if text else 0
        return 2 * (int(np.prod(shape)) + text_numbers)

    bar = Progress("encoded", "clip")
    encode = make_frame_encoder(vae, option(config, "dtype", DTYPES))
    splits = []
    for number, split in enumerate(SPLITS):
        source = make_source(config.data, buckets, held_out=split == "validation")
        splits.append(_Split(split, source, (config.seed, number), encode, text, bar))
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
        "fps": float(splits[0].source.fps),
        "seed": config.seed,
        "passes": passes,
        "buckets": list(map(str, buckets)),
        "unreadable": {each.name: each.unreadable for each in splits},  # filled while it writes
    }
    with bar:
        empty_text = text.empty() if text else None
        write_latents(output, shards, vae.config.latent_channels, description, empty_text)
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


@dataclasses.dataclass
class _Split:
    """Reads and encodes the clips of a split; `unreadable` collects what failed, and why."""

    name: str
    source: ClipSource
    seed: tuple[int, int]
    encode: Encoder
    text: CaptionEncoder | None
    bar: Progress
    unreadable: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def records(self, batches: Sequence[Batch]) -> Iterator[Record]:
        """What can be read of the batches, in their order."""
        pending = None
        for batch, frames, records in self._read_ahead(batches):
            self.bar.advance(len(batch.clips))
            if not records:
                continue
            # Both return before they are done.
            latents = self.encode(frames)
            text = None
            if self.text:
                text = self.text.start([record.captions for record in records], batch.size)
            if pending:
                yield from self._done(*pending)
            pending = records, latents, text
        if pending:
            yield from self._done(*pending)

    def _done(
        self,
        records: Sequence[Record],
        latents: jax.Array,
        text: tuple[np.ndarray, jax.Array] | None,
    ) -> Iterator[Record]:
        texts = self.text.finish(*text) if text else [{}] * len(records)
        for record, one, features in zip(records, np.asarray(latents), texts):
            half = to_half(one, "VAE", f"clip {record.clip} of {self.name}")
            yield record._replace(latents=half, text=features)

    def _read_ahead(
        self, batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, np.ndarray, list[Record]]]:
        """Batches with frames uint8 [size, F, H, W, 3], whose first are those of the records."""
        options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
        reading = iter(grain.MapDataset.source(batches).map(self._read).to_iter_dataset(options))
        try:
            for batch, frames, records, failed in reading:
                for failure in failed:
                    self.unreadable.append(failure)
                    if len(self.unreadable) <= _LISTED:
                        self.bar.say(
                            f"{self.name}: clip {failure['clip']} {failure['file_name']} cannot "
                            f"be read and is left out: {failure['reason']}"
                        )
                yield batch, frames, records
        finally:
            reading.close()

    def _read(self, batch: Batch) -> tuple[Batch, np.ndarray, list[Record], list[dict[str, Any]]]:
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
        return batch, frames, records, failed


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
