"""How far long work is: a bar on a terminal or in a notebook, lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

_SAID_EVERY = 30.0  # seconds, in a log


class Progress:
    """A bar; in a log a line now and then, with the rate and the time left.

    Attributes:
      total: how much there is to do.
    """

    def __init__(self, done: str, unit: str, total: int = 0, *, shown: bool = True):
        """Of what is `done` with so many of a unit, such as "encoded" and "clip"."""
        self._shown = shown
        self.total = total
        self._named, self._unit = done, unit
        self._done = 0
        self._bar = None

    def __enter__(self) -> "Progress":
        self._started = self._said = time.monotonic()
        if self._shown and (sys.stderr.isatty() or _in_notebook()):
            self._bar = tqdm(total=self.total, desc=self._named, unit=self._unit)
        return self

    def advance(self, count: int = 1) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if self._shown and (now - self._said > _SAID_EVERY or self._done == self.total):
            self._said = now
            rate = self._done / max(now - self._started, 1e-3)
            left = (self.total - self._done) / rate
            pace = f"{rate:.1f} a second" if rate >= 1 else f"{1 / rate:.1f} s each"
            self.say(
                f"{self._named} {self._done} of {self.total} {self._unit}s, {pace}, "
                f"{int(left // 60)} min {int(left % 60)} s left"
            )

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def watched(items: Iterable[Any], total: int, done: str, unit: str) -> Iterator[Any]:
    """The items one by one, and how far they are."""
    with Progress(done, unit, total) as progress:
        for item in items:
            progress.advance()
            yield item
