"""The grain graph: one shuffled stream of clips a bucket, batched, and the buckets interleaved."""

import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import flags, logging

from sora_jax.buckets import Bucket, assign_all
from sora_jax.data.reader import Reader, stack
from sora_jax.data.report import BucketReport, BucketRow
from sora_jax.data.schedule import HostShare, Shuffle, schedule
from sora_jax.data.source import ClipSource


class BatchIterator(grain.DatasetIterator):
    """Batches by step number, whatever reads them: the state is the number of the next step.

    Batches are random access, so resuming starts the reading threads or processes at that step. The
    state of a run with worker processes hence restores one without, and the other way round.
    """

    def __init__(self, batches: grain.MapDataset, prefetch: int, workers: int, fingerprint: int):
        super().__init__()
        self._batches = batches
        self._prefetch = prefetch
        self._workers = workers
        self._fingerprint = fingerprint
        self._step = 0
        self._running: grain.DatasetIterator | None = None
        self.failures: dict[int, str] = {}
        self.substituted = 0
        self.uncaptioned = 0

    def start_prefetch(self) -> None:
        self._assert_not_closed()
        if self._running is None:
            # In a worker process one batch is made at a time: the processes are the parallelism.
            threads = 0 if self._workers else self._prefetch
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
            batches = self._batches[self._step :].to_iter_dataset(options)
            if self._workers:
                if not flags.FLAGS.is_parsed():  # grain hands its own flags on to the processes
                    flags.FLAGS.mark_as_parsed()
                ahead = max(1, self._prefetch // self._workers)
                batches = batches.mp_prefetch(
                    grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=ahead)
                )
            self._running = iter(batches)
            # Also where nobody calls close: processes left alone leak their shared memory.
            self._end = weakref.finalize(self, self._running.close)
            self._running.start_prefetch()

    def __next__(self) -> dict[str, np.ndarray]:
        self.start_prefetch()
        batch, failures, uncaptioned = next(self._running)
        self._step += 1
        self.substituted += len(failures)
        for index, reason in failures:
            if index not in self.failures:
                self.failures[index] = reason
                logging.warning(
                    "clip %d cannot be read and is replaced by another of its bucket: %s",
                    index,
                    reason,
                )
        if uncaptioned and not self.uncaptioned:
            logging.warning(
                "a clip has no caption of a kind in caption_weights: it is used with an empty one"
            )
        self.uncaptioned += uncaptioned
        return batch

    def get_state(self) -> dict[str, int]:
        return {"step": self._step, "fingerprint": self._fingerprint}

    def set_state(self, state: Mapping[str, int]) -> None:
        if state["fingerprint"] != self._fingerprint:
            logging.warning(
                "the data are not those of the checkpoint (clips, buckets, batch sizes or seed "
                "differ): continuing at step %d of a new order",
                state["step"],
            )
        self._stop()
        self._step = state["step"]

    def _stop(self) -> None:
        if self._running is not None:
            self._end()
            self._running = None

    def close(self) -> None:
        self._stop()
        super().close()


class Loader:
    """Iterates over batches of one bucket each; the same bucket on every host at every step.

    Attributes:
      report: what becomes of the clips.
      iterator: the grain iterator, for `grain.checkpoint.CheckpointSave` and `CheckpointRestore`;
        it also counts what could not be read.
    """

    def __init__(self, report: BucketReport, iterator: BatchIterator):
        self.report = report
        self.iterator = iterator

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self.iterator)

    def get_state(self) -> dict[str, int]:
        """The position, as plain numbers: it goes into JSON."""
        return self.iterator.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues with the batch that would have come next when `get_state` gave `state`."""
        self.iterator.set_state(state)

    def close(self) -> None:
        """Ends the threads or processes that read ahead."""
        self.iterator.close()


def make_loader(
    source: ClipSource,
    buckets: Sequence[Bucket],
    *,
    batch_size: Callable[[Bucket], int],
    tokenize: Callable[[str], np.ndarray] | None = None,
    caption_weights: Mapping[str, float] | None = None,
    caption_dropout: float = 0.0,
    look: Callable[[np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    parts: Sequence[int] = (0,),
    part_count: int = 1,
    workers: int = 0,
    prefetch: int = 4,
) -> Loader:
    """A loader of batches of captioned clips, each batch of one bucket.

    Every clip is seen equally often, whatever its bucket: buckets take steps in proportion to clips
    / batch size, and each is an endless stream, shuffled anew each epoch and cut into batches
    without regard to where its epochs end. So no clip is left over, and a bucket with fewer clips
    than its batch repeats them within the batch, that much more rarely. Clips, crops and captions
    depend only on the arguments and the step, not on hosts, threads or processes.

    The table of the report is logged by a host with part 0, as a warning where something is lost.

    Args:
      source: the clips; `read` is called from several threads at once, or in processes, for which
        source and tokenizer must pickle.
      buckets: the shapes; `sora_jax.buckets.assign_all` says which clip goes where.
      batch_size: clips of a bucket's global batch, divisible by `part_count`.
      tokenize: caption to token numbers [L]; None for batches without text, or if the source gives
        text features, which are then taken instead.
      caption_weights: for each kind of caption how often it is chosen, among the kinds a clip has.
      caption_dropout: how often the caption is replaced by the empty one.
      look: frames [F, H, W, 3] of a clip to what an image encoder takes of them; None for batches
        without that.
      seed: of the order, the crops and the captions.
      shuffle: False gives the clips of each bucket in their order, for evaluation.
      epochs: None for no end. Else the last batch of each bucket is filled up with clips that are
        seen once more, so that shapes stay and no clip is missed.
      parts: which parts of each global batch this host takes, ascending. Hosts whose devices hold
        the same rows take the same parts.
      part_count: equal parts of a batch. All of them in order are the batch of a single host.
      workers: processes that read; 0 for threads. A script that uses them must guard its entry
        point with `if __name__ == "__main__"`, as they import it.
      prefetch: batches read at the same time and held ready.

    Returns:
      A loader of dicts: `frames` uint8 [b, F, H, W, 3] or `latents` [b, T, h, w, C], and `tokens`
      int32 [b, L] if `tokenize` is given or `text` [b, L, D] if the source has features, where
      b = batch_size(bucket) * len(parts) / part_count. With `look` there are `pixels`, and whatever
      else the source gives of images.

    Raises:
      ValueError: an argument out of range, or no clip fits any bucket.
    """
    if not parts or not set(parts) <= set(range(part_count)):
        raise ValueError(
            f"parts={tuple(parts)} must be some of 0..{part_count - 1} (part_count={part_count})."
        )
    if seed < 0 or workers < 0 or prefetch < 1 or (epochs is not None and epochs < 1):
        raise ValueError(
            f"seed={seed} and workers={workers} must not be negative, prefetch={prefetch} and "
            f"epochs={epochs} must be positive (epochs may be None: no end)."
        )
    weights = dict(caption_weights or {})
    if tokenize is not None or caption_weights is not None:
        _check_captions(weights, caption_dropout)

    assignment = assign_all(buckets, source.shapes)
    sizes = [_checked_batch_size(bucket, batch_size(bucket), part_count) for bucket in buckets]
    members = [np.flatnonzero(assignment.choice == number) for number in range(len(buckets))]
    report = BucketReport(
        tuple(
            BucketRow(
                bucket,
                len(clips),
                size,
                float(assignment.crop_loss[clips].mean()) if len(clips) else 0.0,
            )
            for bucket, clips, size in zip(buckets, members, sizes)
        ),
        assignment.unassigned,
    )
    if not report.clips:
        raise ValueError(_no_clips(source.shapes, buckets, assignment.unassigned))
    if 0 in parts:
        lost = report.unassigned or report.empty
        level = logging.WARNING if lost else logging.INFO
        logging.log(level, "buckets of %s:\n%s", source, report)

    streams, counts = [], []
    for bucket, clips, size in zip(buckets, members, sizes):
        if not len(clips):
            continue
        key = np.random.SeedSequence((seed, bucket.frames, bucket.height, bucket.width))
        order_seed, read_seed = map(int, key.generate_state(2))
        stream = grain.MapDataset.range(len(clips))
        if shuffle:
            stream = Shuffle(stream, order_seed)
        # The random map is seeded by the place in the stream: it must come before HostShare.
        reader = Reader(source, clips, bucket, tokenize, weights, caption_dropout, look)
        stream = stream.random_map(reader, seed=read_seed)
        stream = HostShare(stream.repeat(), size, parts, part_count)
        streams.append(stream.batch(size // part_count * len(parts), batch_fn=stack))
        counts.append((len(clips), size))
    batches = grain.MapDataset.select_from_datasets(streams, schedule(counts, epochs))
    identity = (
        seed,
        shuffle,
        epochs,
        zlib.crc32(assignment.choice.tobytes()),
        [*map(str, buckets)],
    )
    fingerprint = zlib.crc32(repr((*identity, sizes)).encode())
    return Loader(report, BatchIterator(batches, prefetch, workers, fingerprint))


def _checked_batch_size(bucket: Bucket, size: int, part_count: int) -> int:
    if size < 1 or size % part_count:
        raise ValueError(
            f"bucket {bucket}: a batch of {size} clips cannot be cut into {part_count} equal "
            f"parts; make it a positive multiple of {part_count}."
        )
    return size


def _check_captions(weights: Mapping[str, float], dropout: float) -> None:
    if min(weights.values(), default=0) < 0 or not sum(weights.values()) > 0:
        raise ValueError(
            f"caption_weights={dict(weights)} must be non-negative with a positive sum, for "
            'example {"short": 0.2, "detailed": 0.8}.'
        )
    if not 0 <= dropout <= 1:
        raise ValueError(f"caption_dropout={dropout} is a probability: give 0 to 1.")


def _no_clips(shapes: np.ndarray, buckets: Sequence[Bucket], unassigned: Mapping[str, int]) -> str:
    if not len(shapes):
        return "the data set has no clips; check its path and split."
    reasons = "; ".join(f"{count} {why}" for why, count in unassigned.items())
    low, high = np.min(shapes, axis=0), np.max(shapes, axis=0)
    return (
        f"none of the {len(shapes)} clips fits any of the buckets {', '.join(map(str, buckets))}: "
        f"{reasons}. The clips have {low[0]} to {high[0]} frames of {low[1]} to {high[1]} x "
        f"{low[2]} to {high[2]} (height x width): make shorter or smaller buckets."
    )
