"""A model on disk: `model.json` with the settings, one safetensors file a part, the tokenizer."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sora_jax.weights.int8 import held_dtype, quantise
from sora_jax.weights.tensor_files import DTYPES, allocate, check_finite, check_range, read_json

FORMAT = "sora_jax model 1"
LORA_FORMAT = "sora_jax lora 2"  # see `weights.lora_folder`
NOT_SETTINGS = ("format", "parts")  # what model.json holds besides settings of the whole model
_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass
class Part:
    """One network: the settings of its config dataclass and its parameters.

    Attributes:
      settings: JSON values.
      params: nested dict of arrays, or the part's file in another folder, to be copied as it is.
    """

    settings: dict[str, Any]
    params: Any


def save_model(
    folder: pathlib.Path | str,
    parts: Mapping[str, Part],
    settings: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    dtype: Any = np.float32,
) -> None:
    """Writes a model folder; files of the same names are replaced one by one, whole.

    Args:
      folder: made if missing.
      parts: by name: "vae", "dit", "text", "dit_low" where there are two transformers, and "image".
      settings: JSON values that belong to the model as a whole, such as its fps.
      tokenizer: what has `save(path)`, or None.
      dtype: of the floating-point parameters on disk, but for those that are copied.
    """
    with replaced(folder) as scratch:
        for name, part in parts.items():
            if isinstance(part.params, pathlib.Path):
                shutil.copyfile(part.params, scratch / f"{name}.safetensors")
                continue
            flat = traverse_util.flatten_dict(part.params, sep="/")
            flat = {
                key: np.ascontiguousarray(np.asarray(value, dtype)) for key, value in flat.items()
            }
            save_file(flat, scratch / f"{name}.safetensors")
        if tokenizer is not None:
            tokenizer.save(scratch / "tokenizer.json")
        write_description(scratch, {name: part.settings for name, part in parts.items()}, settings)


def write_description(
    folder: pathlib.Path, parts: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Writes model.json; for the arguments see `save_model`, with the settings of each part."""
    description = {"format": FORMAT, **settings, "parts": dict(parts)}
    (folder / "model.json").write_text(json.dumps(description, indent=2) + "\n")


@contextlib.contextmanager
def replaced(folder: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """A folder to write a model to, which takes the place of the one in `folder` at the end.

    Where writing fails, nothing changes.
    """
    folder = pathlib.Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            scratch = pathlib.Path(scratch)
            yield scratch
            # The description goes first and comes last: a folder with one is complete, also where
            # the model of an earlier step is replaced.
            (folder / "model.json").unlink(missing_ok=True)
            for file in sorted(scratch.iterdir(), key=lambda file: file.name == "model.json"):
                # The library of safetensors keeps what it writes from all other users.
                shutil.copymode(scratch / "model.json", file)
                os.replace(file, folder / file.name)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # something is in it after all
                folder.rmdir()
        raise


def check_space(folder: pathlib.Path, size: int) -> None:
    """Raises ValueError unless there is room for so many bytes where a folder is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        raise ValueError(
            f"{folder} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make "
            "room, or name a folder elsewhere"
        )


def find_model(folder: pathlib.Path | str) -> pathlib.Path:
    """The model folder that is meant: `folder`, or the one in it if it is a run's work folder."""
    folder = pathlib.Path(os.path.expanduser(folder))
    inside = folder / "model"
    if not (folder / "model.json").is_file() and (inside / "model.json").is_file():
        return inside
    return folder


def load_description(folder: pathlib.Path | str) -> dict[str, Any]:
    """The contents of model.json.

    Raises:
      FileNotFoundError, ValueError: no such folder, or not one of ours.
    """
    folder = pathlib.Path(folder)
    file = folder / "model.json"
    if not folder.is_dir() or not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model.json; give a model folder, such as WORKDIR/model of a "
            "training run"
        )
    description = read_json(file, "write the model folder again")
    if description.get("format") == LORA_FORMAT:
        raise ValueError(
            f"{folder} holds adapters and no whole model; give that of {description.get('base')}, "
            "or write both as one: python -m sora_jax.weights export"
        )
    if description.get("format") != FORMAT:
        raise ValueError(f"{file} is not a {FORMAT!r} file; write the model folder again")
    parts = description.get("parts", {})
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"{file}: parts must be settings by name; write the model folder again")
    return description


def load_part(
    folder: pathlib.Path | str,
    name: str,
    shapes: Any,
    dtype: np.dtype | None = _FLOAT32,
    place: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Parameters of one part as a nested dict of numpy arrays.

    Args:
      folder: a model folder.
      name: "vae", "dit", "dit_low", "text" or "image".
      shapes: nested dict of what the configuration asks for, with `.shape`.
      dtype: of the parameters; None for that of the file; int8 for QArrays among them, see
        `weights.int8`.
      place: each goes through it before the next is read.

    Raises:
      FileNotFoundError: the part's file is missing.
      ValueError: truncated, or tensors missing, unknown, or of other shapes: nothing is loaded; or
        NaN, infinity, or a number that float16 cannot hold.
    """
    file, wanted = _part_file(folder, name), traverse_util.flatten_dict(shapes, sep="/")
    flat = {}
    with _opened(file, wanted) as tensors:
        # The largest first: what is being read is held twice, and the rest is not there yet.
        for key in sorted(wanted, key=lambda key: -np.prod(wanted[key].shape, dtype=np.int64)):
            view = tensors.get_slice(key)
            kept = held_dtype(name, key, dtype, DTYPES.get(view.get_dtype(), _FLOAT32))
            if kept == np.int8:
                layers = (check_finite(view[i], file, key) for i in range(wanted[key].shape[0]))
                flat[key] = place(quantise(layers, wanted[key].shape))
            else:
                flat[key] = place(_read_as(tensors, key, kept, file))
    return traverse_util.unflatten_dict(flat, sep="/")


def _read_as(tensors: safe_open, key: str, dtype: np.dtype, file: pathlib.Path) -> np.ndarray:
    """A tensor of an open file; a function of its own, so that what was read is let go."""
    read = check_finite(tensors.get_tensor(key), file, key)
    if dtype == np.float16 and read.dtype != dtype:
        check_range(read, file, key)
    x = allocate(read.shape, dtype)
    x[...] = read
    return x


def check_part_file(folder: pathlib.Path | str, name: str, shapes: Any) -> None:
    """Raises what `load_part` would for the same arguments, but for damage to numbers alone."""
    with _opened(_part_file(folder, name), traverse_util.flatten_dict(shapes, sep="/")):
        pass


def _part_file(folder: pathlib.Path | str, name: str) -> pathlib.Path:
    file = pathlib.Path(folder) / f"{name}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the model folder is incomplete")
    return file


@contextlib.contextmanager
def _opened(file: pathlib.Path, wanted: Mapping[str, Any]) -> Iterator[safe_open]:
    """A file whose names and shapes are what is wanted."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            found = {key: tuple(tensors.get_slice(key).get_shape()) for key in list(tensors.keys())}
            for key in sorted(set(wanted) | set(found)):
                if key not in found:
                    raise ValueError(f"{file} lacks {key!r}; is it of another configuration?")
                if key not in wanted:
                    raise ValueError(f"{file} has the tensor {key!r}, unknown to the configuration")
                if found[key] != tuple(wanted[key].shape):
                    raise ValueError(
                        f"{file}: {key!r} has shape {found[key]}, the configuration in model.json "
                        f"asks for {tuple(wanted[key].shape)}"
                    )
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or damaged ({error}); copy it again") from error
