"""Our parameters out of files of PyTorch's tensors, one at a time, to save memory.

Everything is checked before anything is read, see `check_part`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sora_jax.weights.diffusers import check_shapes
from sora_jax.weights.entries import list_entries
from sora_jax.weights.int8 import held_dtype, quantise
from sora_jax.weights.tensor_files import Stored, allocate, check_range, read_tensor

Tensors = Mapping[str, Stored]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


def check_part(tensors: Tensors, part: str, config: Any) -> None:
    """Raises ValueError unless the files hold exactly the tensors of a network.

    Args:
      tensors: by diffusers' names.
      part: "vae", "dit", "dit_low", "text" or "image".
      config: sizes of the network.
    """
    deep = config.blocks if part == "vae" else config.layers
    if deep > len(tensors):  # before all their names are listed
        raise ValueError(f"{len(tensors)} tensors are too few for a depth of {deep}")
    wanted = {
        name: entry.their_shape() for entry in list_entries(part, config) for name in entry.names()
    }
    check_shapes({name: stored.shape for name, stored in tensors.items()}, wanted)


def lay_out(tensors: Tensors, part: str, config: Any, dtype: np.dtype | None) -> Layout:
    """Shape and dtype of our parameters by path, the largest first.

    Args:
      tensors, part, config: as `check_part` takes them.
      dtype: of all; None for that of the files; int8 for that of the matrices, see `held_dtype`.
    """
    layout = {}
    for entry in list_entries(part, config):
        stored = [tensors[name].dtype for name in entry.names()]
        # One array cannot hold layers of several types.
        kept = stored[0] if len(set(stored)) == 1 else np.dtype(np.float32)
        layout[entry.path] = entry.shape, held_dtype(part, entry.path, dtype, kept)
    # What is being read is held twice: by beginning with the largest, the peak is no peak at all.
    return dict(sorted(layout.items(), key=lambda item: -np.prod(item[1][0], dtype=np.int64)))


def stream(
    tensors: Tensors, part: str, config: Any, layout: Layout
) -> Iterator[tuple[str, np.ndarray]]:
    """Paths and arrays of our parameters in the order of the layout, after `check_part`.

    What the layout has in int8 comes as a QArray, see `weights.int8`.

    Raises:
      ValueError: a damaged file, or a number that the dtype cannot hold.
    """
    entries = {entry.path: entry for entry in list_entries(part, config)}
    for path, (shape, dtype) in layout.items():
        yield path, _read_entry(tensors, entries[path], shape, dtype)


def _read_entry(tensors: Tensors, entry: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """The parameter of an entry of `list_entries`.

    A function of its own, so that what it read last is let go before the next begins.
    """
    if dtype == np.int8:
        layers = (entry.layout.ours(read_tensor(tensors[name])) for name in entry.names())
        return quantise(layers, shape)
    result = allocate(shape, dtype)
    places = result if entry.stacked else result[None]
    for place, name in zip(places, entry.names(), strict=True):
        x = entry.layout.ours(read_tensor(tensors[name]))
        if dtype == np.float16 and x.dtype != dtype:
            check_range(x, tensors[name].file, tensors[name].name)
        place[...] = x
    return result


def read_part(
    tensors: Tensors,
    part: str,
    config: Any,
    dtype: np.dtype | None,
    place: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Parameters of a network as a nested dict; raises as `check_part` and `stream` do.

    Each goes through `place` before the next is read.
    """
    check_part(tensors, part, config)
    flat = stream(tensors, part, config, lay_out(tensors, part, config, dtype))
    return traverse_util.unflatten_dict({path: place(x) for path, x in flat}, sep="/")
