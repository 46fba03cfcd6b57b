"""How far a long command is: a bar on a terminal, lines in a log."""

import sys
import time
from typing import Any

import tqdm

_SAID_EVERY = 30.0  # seconds, in a log


class Progress:
    """A bar on a terminal; in a log a line now and then, with the rate and the time left.

    Attributes:
      total: clips there are to do.
    """

    def __init__(self):
        self.total = 0
        self._done = 0
        self._bar = None

    def __enter__(self) -> "Progress":
        self._started = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=self.total, desc="encoded", unit="clip")
        return self

    def advance(self, clips: int) -> None:
        self._done += clips
        if self._bar is not None:
            self._bar.update(clips)
            return
        now = time.monotonic()
        if now - self._said > _SAID_EVERY or self._done == self.total:
            self._said = now
            rate = self._done / max(now - self._started, 1e-3)
            left = (self.total - self._done) / rate
            self.say(
                f"encoded {self._done} of {self.total} clips, {rate:.1f} a second, "
                f"{int(left // 60)} min {int(left % 60)} s left"
            )

    def say(self, line: str) -> None:
        tqdm.tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
