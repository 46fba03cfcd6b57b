"""Safetensors files, one or several with an index: what is in them, and one tensor of it.

Only headers are read until a tensor is asked for, and a file is open for no longer than that: what
a process holds is the tensors it keeps. Files that hold pickles are never opened.
"""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
# Of a tensor in a file; what else the format knows, no published model of video needs.
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_ALIGNMENT = 64  # of memory that jax takes over on CPU without a copy
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: where it is.
      name: in the file.
      shape: of the array.
      dtype: on disk.
    """

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


def as_dtype(name: str) -> np.dtype | None:
    """The dtype that a flag or an argument names; None, for "stored", is that of the files.

    Raises:
      ValueError: another name.
    """
    if name == "stored":
        return None
    # No file has int8: what is held in it is made while loading.
    names = {dtype.name: dtype for dtype in (*_NAMES, np.dtype(np.int8))}
    if name not in names:
        raise ValueError(f"dtype {name!r} must be 'stored' or one of {sorted(names)}")
    return names[name]


def read_json(file: pathlib.Path, remedy: str = "download it again") -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
      FileNotFoundError, ValueError: it is missing, or see `parse_json`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; download the whole folder again")
    return parse_json(file.read_bytes(), str(file), remedy)


def parse_json(text: str | bytes, where: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a text holds, whose numbers are all within what a float holds.

    Raises:
      ValueError: it holds something else; `where` it was and the `remedy` are for the message.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds no JSON object; {remedy}")
    return value


def _whole(digits: str) -> int:
    if not math.isfinite(float(digits)):
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def list_tensors(folder: pathlib.Path, stem: str) -> dict[str, Stored]:
    """All tensors of STEM.safetensors, or of the files that STEM.safetensors.index.json names.

    Raises:
      FileNotFoundError: no such file, or one that the index names is missing.
      ValueError: a file is damaged, holds numbers of an unknown type, or is not what the index
        says; or there are pickles only, which are not read.
    """
    index, single = folder / f"{stem}{INDEX}", folder / f"{stem}.safetensors"
    if index.is_file():
        return _list_indexed(folder, index)
    if single.is_file():
        return list_file(single)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; download the whole model again")
    here = sorted(file.name for file in folder.iterdir())
    pickles = [name for name in here if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"{folder} holds {pickles[0]}, a pickle, which can run any program and is not read; "
            "get the same weights as .safetensors"
        )
    shards = [name for name in here if name.startswith(stem) and name.endswith(".safetensors")]
    if shards:
        raise FileNotFoundError(f"{folder} holds {shards[0]} without {index.name}; download that")
    raise FileNotFoundError(f"{folder} holds no {single.name}; download the whole folder again")


def _list_indexed(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Stored]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ValueError(f"{index} has no weight_map from tensors to files; download it again")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        # Only names of files beside the index: it must not lead anywhere else.
        plain = pathlib.PurePosixPath(name).name == name == pathlib.PureWindowsPath(name).name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index} names the file {name!r}, and may only name .safetensors files beside it; "
                "do not use this download"
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; download it again")
        found = list_file(folder / name)
        for key, stored in found.items():
            if places.get(key) != name:
                raise ValueError(
                    f"{stored.file} has the tensor {key!r}, which {index.name} looks for in "
                    f"{places.get(key)!r}; download the folder again"
                )
        tensors |= found
    lost = sorted(set(places) - set(tensors))
    if lost:
        file = folder / places[lost[0]]
        raise ValueError(f"{file} lacks {lost[0]!r}, which {index.name} names; download it again")
    return tensors


def list_file(file: pathlib.Path) -> dict[str, Stored]:
    """All tensors of a file, whose size the library compares with what its header promises.

    Raises:
      ValueError: a damaged file, or numbers of an unknown type.
    """
    found = {}
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                view = tensors.get_slice(name)
                dtype = DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise ValueError(
                        f"{file}: {name!r} is {view.get_dtype()}, and only {sorted(DTYPES)} are "
                        "read; get the weights in one of those"
                    )
                found[name] = Stored(file, name, tuple(view.get_shape()), np.dtype(dtype))
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}); download it again") from error
    return found


def read_tensor(stored: Stored, layer: int | None = None) -> np.ndarray:
    """The numbers of a tensor, in memory of their own.

    Args:
      stored: where it is.
      layer: index along the first axis, of which alone is read; None for all.

    Raises:
      ValueError: the file is no longer what it was when listed, or holds NaN or infinity.
    """
    try:
        with safe_open(stored.file, framework="numpy") as tensors:
            if layer is None:
                x = tensors.get_tensor(stored.name)
            else:
                x = tensors.get_slice(stored.name)[layer]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{stored.file} changed while it was read ({error}); try again") from error
    if x.shape != stored.shape[layer is not None :] or x.dtype != stored.dtype:
        raise ValueError(f"{stored.file} changed while it was read; try again")
    return check_finite(x, stored.file, stored.name)


def are_equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors [N, ...] hold the same numbers, of which few are in memory at a time."""
    if one == other:
        return True
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with safe_open(one.file, "numpy") as a, safe_open(other.file, "numpy") as b:
        views = a.get_slice(one.name), b.get_slice(other.name)
        rows = [slice(i, min(i + 4096, one.shape[0])) for i in range(0, one.shape[0], 4096)]
        return all(np.array_equal(*(view[at] for view in views)) for at in rows)


def check_finite(x: np.ndarray, file: pathlib.Path, name: str) -> np.ndarray:
    """The tensor; raises ValueError, naming it, for an exponent of all ones: infinity or NaN.

    Part by part, since a mask of a whole tensor would be large.
    """
    bits, exponent = {
        "float32": (np.uint32, 0x7F800000),
        "float16": (np.uint16, 0x7C00),
        "bfloat16": (np.uint16, 0x7F80),
    }[x.dtype.name]
    flat, part = np.ascontiguousarray(x).reshape(-1).view(bits), 2**20
    if any(((flat[i : i + part] & exponent) == exponent).any() for i in range(0, flat.size, part)):
        raise ValueError(f"{file}: {name!r} holds NaN or infinity; get the file again")
    return x


def check_range(x: np.ndarray, file: pathlib.Path, name: str) -> None:
    """Raises ValueError, naming the tensor, if it has numbers that float16 cannot hold, or NaN."""
    largest = float(np.finfo(np.float16).max)
    if not np.all(np.abs(x) <= largest):
        raise ValueError(f"{file}: {name!r} goes beyond float16's {largest:g}; use bfloat16")


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that `jax.device_put` takes over on CPU instead of copying it."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def write_tensors(
    file: pathlib.Path,
    layout: dict[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a safetensors file, one tensor in memory at a time.

    Args:
      file: to write.
      layout: shape and dtype of each tensor, in the order in which they come.
      tensors: names and arrays in that order.
      metadata: what the header says besides.
    """
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (shape, dtype) in layout.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for (name, x), (wanted, (shape, dtype)) in zip(tensors, layout.items(), strict=True):
            assert (name, x.shape, x.dtype) == (wanted, shape, np.dtype(dtype))
            out.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
