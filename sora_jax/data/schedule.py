"""The order of clips in a bucket, the parts of a host in a batch, the bucket of each step."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np


class Shuffle(grain.MapDataset):
    """The elements of the parent in an order of each epoch's own.

    grain's own shuffle walks through 65,536 places however few elements there are, which takes
    milliseconds an element in a bucket of ten clips.
    """

    def __init__(self, parent: grain.MapDataset, seed: int):
        super().__init__(parent)
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}  # of the latest epochs

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int) -> Any:
        epoch, place = divmod(index, len(self))
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self))
            # Batches that are read at the same time straddle two epochs. The dict is replaced, not
            # changed, as threads share it.
            latest = sorted(self._orders)[-1:]
            self._orders = {epoch: order} | {past: self._orders[past] for past in latest}
        return self._parent[epoch * len(self) + int(order[place])]


class HostShare(grain.MapDataset):
    """The parts of every global batch that this host holds, one after the other.

    Args:
      parent: the clips of a bucket, batch after batch.
      batch_size: of the global batch.
      parts: numbers of the parts, of `part_count` equal ones that the batch is cut into.
    """

    def __init__(
        self, parent: grain.MapDataset, batch_size: int, parts: Sequence[int], part_count: int
    ):
        super().__init__(parent)
        self._batch_size = batch_size
        size = batch_size // part_count
        self._rows = [part * size + row for part in parts for row in range(size)]

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[place]]


class Schedule(grain.transforms.DatasetSelectionMap):
    """Which bucket each step takes, spread evenly and in exact proportion to `shares`.

    After any multiple of sum(shares) steps each bucket has had exactly its share of them; until
    then it stays within a few steps of that. grain's own mix rounds the proportions to percents of
    the smallest, which ends most finite runs early.
    """

    def __init__(self, shares: Sequence[int], length: int):
        self._shares = tuple(shares)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> tuple[int, int]:
        # Each bucket in turn takes its rounded-down part of the steps that the previous ones left.
        total = sum(self._shares)
        for bucket, share in enumerate(self._shares[:-1]):
            taken = step * share // total
            if (step + 1) * share // total > taken:
                return bucket, taken
            step -= taken
            total -= share
        return len(self._shares) - 1, step


def schedule(counts: Sequence[tuple[int, int]], epochs: int | None) -> Schedule:
    """The steps of buckets of (clips, batch size), endless where `epochs` is None.

    Endless, each bucket's share is exactly clips / batch size. Of a finite run it is that times
    `epochs`, rounded up.
    """
    if epochs is None:
        common = math.lcm(*(size for _, size in counts))
        return Schedule([clips * (common // size) for clips, size in counts], sys.maxsize)
    steps = [math.ceil(epochs * clips / size) for clips, size in counts]
    return Schedule(steps, sum(steps))
