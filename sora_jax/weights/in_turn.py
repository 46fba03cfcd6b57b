"""Parameters of several networks in the memory of the largest of them."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class InTurn(Mapping[str, Any]):
    """Parameters by part, of which only the part that was asked for last is in memory.

    Another part is read from disk when it is asked for, after the one before it is let go. Whoever
    holds that one still, as a program that has not ended does, has both in memory.
    """

    def __init__(self, names: Iterable[str], load: Callable[[str], Any]):
        """
        Args:
          names: of the parts.
          load: the parameters of a part.
        """
        self._names, self._load = tuple(names), load
        self._held: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._held:
            self._held.clear()
            gc.collect()  # jax lets go of memory that it took over from NumPy only then
            self._held[name] = self._load(name)
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
