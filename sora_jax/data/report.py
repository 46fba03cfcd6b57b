"""The table that says, before the first step, what becomes of the clips of a data set."""

import dataclasses
from collections.abc import Mapping

from sora_jax.buckets import Bucket


@dataclasses.dataclass(frozen=True)
class BucketRow:
    """One line of the report: a bucket, its clips, its global batch and what cropping costs it."""

    bucket: Bucket
    clips: int
    batch_size: int
    crop_loss: float  # mean share of the clips' pixels lost to cropping

    @property
    def steps(self) -> float:
        """Steps in which each clip of the bucket is seen once."""
        return self.clips / self.batch_size


@dataclasses.dataclass(frozen=True)
class BucketReport:
    """What becomes of the clips of a source; `str` is a table for people.

    Attributes:
      rows: one for each bucket, those without clips included.
      unassigned: how many clips fit no bucket, by reason.
    """

    rows: tuple[BucketRow, ...]
    unassigned: Mapping[str, int]

    @property
    def clips(self) -> int:
        """Clips that have a bucket."""
        return sum(row.clips for row in self.rows)

    @property
    def empty(self) -> tuple[Bucket, ...]:
        """Buckets that no clip goes to, and that no step will have."""
        return tuple(row.bucket for row in self.rows if not row.clips)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which each clip is seen once."""
        return sum(row.steps for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'bucket':>14} {'clips':>9} {'batch':>6} {'steps':>7} {'cropped':>8}"]
        for row in self.rows:
            note = ""
            if not row.clips:
                note = "  EMPTY: no clip goes here"
            elif row.clips < row.batch_size:
                note = "  fewer clips than the batch: they repeat within it"
            lines.append(
                f"{row.bucket!s:>14} {row.clips:>9} {row.batch_size:>6} "
                f"{row.steps / self.steps_per_epoch:>7.1%} {row.crop_loss:>8.1%}{note}"
            )
        lost = sum(self.unassigned.values())
        lines.append(
            f"{self.clips} of {self.clips + lost} clips have a bucket; "
            f"an epoch is {self.steps_per_epoch:.6g} steps."
        )
        lines += [f"  left out: {count} {why}" for why, count in self.unassigned.items()]
        return "\n".join(lines)
