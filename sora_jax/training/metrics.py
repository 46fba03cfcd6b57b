"""What a run reports: TensorBoard event files, lines in the log, a progress bar on a terminal."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from sora_jax.training.remote import Folder, local_folder, upload

logger = logging.getLogger("sora_jax")

# Event files of a run in a bucket get there this often: each time as a whole.
UPLOAD_SECONDS = 60


def measure_peak(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of one device on a square float32 matmul: the best of a few, after a warm-up."""
    x = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Reporter:
    """Collects the metrics of steps and writes their means every so often.

    Of a metric that has no value in some steps, NaN, the mean is over the others.

    Args:
      folder: for event files; None on all hosts but the first, which write nothing.
      steps: length of the run, for the bar and the time left.
      every: steps between two lines.
      peak: FLOP/s of all devices together, which the achieved rate is a share of.
      start: step at which this process starts.
    """

    def __init__(self, folder: Folder | None, *, steps: int, every: int, peak: float, start: int):
        self._ends = contextlib.ExitStack()
        self._writer = None
        if folder is not None:
            self._folder = folder
            self._local = self._ends.enter_context(local_folder(folder))
            self._writer = SummaryWriter(str(self._local))
            self._uploaded = time.perf_counter()
        self._steps, self._every, self._peak = steps, every, peak
        hidden = folder is None or not sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=start, unit="step", disable=hidden)
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}
        self._steps_timed, self._clips, self._flops = 0, 0, 0.0
        self._since = time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Takes time out of the rates: compiling, evaluating, saving."""
        self._since += seconds

    def step(
        self, step: int, metrics: Mapping[str, Any], *, clips: int, flops: float, timed: bool
    ) -> None:
        """Adds the metrics of one finished step, and writes a line when it is due.

        Args:
          step: its number.
          metrics: its scalars.
          clips, flops: its work.
          timed: whether it counts for the rates; its time was taken out by `pause` if not.
        """
        for name, value in metrics.items():
            value, weight = float(value), not math.isnan(value)
            self._sums[name] = self._sums.get(name, 0.0) + (value if weight else 0.0)
            self._weights[name] = self._weights.get(name, 0) + weight
        if timed:
            self._steps_timed += 1
            self._clips += clips
            self._flops += flops
        self._bar.update()
        if step % self._every == 0 or step == self._steps:
            self._flush(step)

    def _flush(self, step: int) -> None:
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {
            name: total / self._weights[name] if self._weights[name] else math.nan
            for name, total in self._sums.items()
        }
        rates = {
            "steps_per_second": self._steps_timed / seconds,
            "clips_per_second": self._clips / seconds,
            "gflop_per_second": self._flops / seconds / 1e9,
            "share_of_peak": self._flops / seconds / self._peak,
        }
        self.write(step, {"train": values, "rate": rates})
        left = "unknown"
        if self._steps_timed:
            left = f"{(self._steps - step) / rates['steps_per_second']:.0f}s"
        line = " ".join(f"{name} {value:.4g}" for name, value in {**values, **rates}.items())
        if self._bar.disable:
            logger.info("step %d/%d %s left %s", step, self._steps, line, left)
        else:
            self._bar.set_postfix_str(f"loss {values.get('loss', math.nan):.4g}")
        self._sums, self._weights = {}, {}
        self._steps_timed, self._clips, self._flops = 0, 0, 0.0
        if self._writer is not None and self._folder != self._local:
            self._upload()
        self._since = time.perf_counter()

    def _upload(self) -> None:
        if time.perf_counter() - self._uploaded >= UPLOAD_SECONDS:
            self._writer.flush()
            upload(self._local, self._folder)
            self._uploaded = time.perf_counter()

    def write(self, step: int, groups: Mapping[str, Mapping[str, Any]]) -> None:
        """Scalars into the event file, by group and name; arrays are left out."""
        if self._writer is None:
            return
        for group, values in groups.items():
            for name, value in values.items():
                if np.ndim(value) == 0:
                    self._writer.add_scalar(f"{group}/{name}", float(value), step)

    def close(self) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
        self._ends.close()
