"""Files of the transformer's low-rank adapters: those of diffusers and peft, and of others.

What is written is what diffusers' `WanPipeline.load_lora_weights` reads. There an adapter counts
alpha / rank times, and readers disagree about where alpha is said: so B holds that factor, and
alpha is the rank, which is what a reader takes it for that is told nothing.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from sora_jax.models.dit_config import DiTConfig
from sora_jax.weights.entries import Reorder, list_entries
from sora_jax.weights.lora_said import INSTEAD, WRITTEN, Said, read_said
from sora_jax.weights.original import to_original_name
from sora_jax.weights.tensor_files import PICKLES, Stored, list_file, read_tensor

FILE = "pytorch_lora_weights.safetensors"

# Of a module's name, by who wrote the file: diffusers, ComfyUI's kind, peft, kohya's kind.
_PEFT = "base_model.model."
_PREFIXES = (WRITTEN, "diffusion_model.", _PEFT, "lora_unet_")
_TENSOR = re.compile(r"(.+?)\.(?:(lora_A|lora_down)|(lora_B|lora_up))(?:\.default)?\.weight")


@dataclasses.dataclass(frozen=True)
class _Place:
    """A matrix that may have an adapter: its names there and here, the layer, its axes' order."""

    name: str
    path: str
    layer: int | None
    ours: Reorder
    shape: tuple[int, int]


@dataclasses.dataclass
class _Adapter:
    """Its tensors, and the name of its matrix as the file has it."""

    module: str
    a: Stored | None = None
    b: Stored | None = None
    alpha: Stored | None = None


def lora_to_diffusers(adapters: Any, config: DiTConfig) -> dict[str, np.ndarray]:
    """Tensors of a file by diffusers' names from adapters whose B holds their scale.

    Args:
      adapters: "a" [layers, in, r] and "b" [layers, r, out] of each layer, see `models.lora`.
      config: of the transformer.
    """
    flat = traverse_util.flatten_dict(adapters, sep="/")
    tensors = {}
    for entry in list_entries("dit", config):
        module, _, leaf = entry.path.rpartition("/")
        if leaf != "kernel" or f"{module}/a" not in flat:
            continue
        for name, a, b in zip(entry.names(), flat[f"{module}/a"], flat[f"{module}/b"], strict=True):
            stem = f"{WRITTEN}{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(np.asarray(a).T)
            # The order of the output's channels is in B alone.
            b = entry.layout.theirs(np.asarray(b))
            tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(b)
    return tensors


def find_lora(source: pathlib.Path | str) -> pathlib.Path:
    """The file that is meant: `source`, or the one of the usual name in it.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is a pickle.
    """
    file = pathlib.Path(os.path.expanduser(source))
    for folder in (file, file / "model"):
        if (folder / FILE).is_file():
            return folder / FILE
    if file.name.endswith(PICKLES):
        raise ValueError(
            f"{file} is a pickle, which can run any program and is not read; get the same adapters "
            "as .safetensors"
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is no file of adapters, nor a folder with {FILE}; give one of these"
        )
    return file


def merge_lora(params: Any, file: pathlib.Path | str, config: DiTConfig) -> None:
    """Adds the adapters of a file to the parameters of a transformer, in place: W += s A B.

    Args:
      params: nested dict of numpy arrays; sums are made in float32 and rounded to their dtype.
      file: see `find_lora`.
      config: of the transformer.

    Raises:
      FileNotFoundError, ValueError: no such file, a damaged one, a tensor that is unknown or of
        another shape, half an adapter, or a kind of adapter that is more than a product of two
        matrices. All of that is checked before anything is added. While adding: a sum that the
        dtype of the parameters cannot hold.
    """
    adapters, scales, places = _open(file, config)
    flat = traverse_util.flatten_dict(params, sep="/")
    for name, one in adapters.items():
        place = places[name]
        kernel = flat[place.path] if place.layer is None else flat[place.path][place.layer]
        total = np.float32(kernel) + place.ours(_product(one, scales[name]))
        kernel[...] = rounded(total, kernel.dtype, place.name)


def lora_products(
    file: pathlib.Path | str, config: DiTConfig
) -> dict[str, list[Callable[[], np.ndarray]]]:
    """What the adapters of a file add to a transformer, by diffusers' names of its tensors.

    Each is float32 [output, input] and read when it is asked for. Raises what `merge_lora` does.
    """
    adapters, scales, places = _open(file, config)
    products = {}
    for name, one in adapters.items():
        product = functools.partial(_product, one, scales[name])
        products.setdefault(places[name].name, []).append(product)
    return products


def rounded(total: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A matrix with its adapters in the dtype that it has without; raises ValueError beyond it."""
    with np.errstate(over="ignore"):
        x = total.astype(dtype)
    if not np.isfinite(np.float32(x)).all():
        raise ValueError(
            f"{name!r} with its adapters is beyond what {dtype} holds; take the parameters in "
            "bfloat16 or float32, or other adapters"
        )
    return x


def _product(adapter: _Adapter, scale: float) -> np.ndarray:
    a, b = (np.float32(read_tensor(stored)) for stored in (adapter.a, adapter.b))
    return np.float32(scale) * (b @ a)


def check_lora(file: pathlib.Path | str, config: DiTConfig) -> None:
    """Raises what `merge_lora` raises, and adds nothing."""
    _open(file, config)


def _open(
    file: pathlib.Path | str, config: DiTConfig
) -> tuple[dict[str, _Adapter], dict[str, float], dict[str, _Place]]:
    """The adapters of a file that fit a transformer, their scales, and all places there are."""
    file = find_lora(file)
    places = _places(config)
    adapters, prefixes = _list_adapters(file, places)
    said = read_said(file, beside=_PEFT in prefixes)
    scales = {name: _scale(file, one, said) for name, one in adapters.items()}
    for name, one in adapters.items():
        _check_shapes(file, name, one, places[name].shape)
    return adapters, scales, places


def _places(config: DiTConfig) -> dict[str, _Place]:
    """Matrices by their names in any layout, with "_" for every "."."""
    places = {}
    for entry in list_entries("dit", config):
        if not entry.path.endswith("/kernel") or len(entry.their_shape()) != 2:
            continue
        for layer, name in enumerate(entry.names()):
            layer = layer if entry.stacked else None
            place = _Place(name, entry.path, layer, entry.layout.ours, entry.their_shape())
            module = name.removesuffix(".weight")
            places[_plain(module)] = places[_plain(to_original_name(module))] = place
    return places


def _plain(module: str) -> str:
    return module.replace(".", "_")


def _list_adapters(
    file: pathlib.Path, places: Mapping[str, _Place]
) -> tuple[dict[str, _Adapter], set[str]]:
    """Adapters by the plain name of their matrix, and which prefixes the file has."""
    adapters: dict[str, _Adapter] = {}
    prefixes = set()
    for key, stored in list_file(file).items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        found = _TENSOR.fullmatch(key.removeprefix(prefix))
        alpha = key.removeprefix(prefix).removesuffix(".alpha")
        if found is None and not key.endswith(".alpha"):
            raise ValueError(f"{file}: {key!r} is no part of an adapter, and {INSTEAD}")
        written = found[1] if found else alpha
        module = _plain(written)
        if module not in places:
            raise ValueError(
                f"{file}: {key!r} belongs to no matrix of the transformer; is it of another model?"
            )
        part = "alpha" if found is None else "a" if found[2] else "b"
        one = adapters.setdefault(module, _Adapter(written))
        if getattr(one, part) is not None:
            raise ValueError(f"{file} has {key!r} twice, by two names; leave out one of them")
        setattr(one, part, stored)
        prefixes.add(prefix)
    if not adapters:
        raise ValueError(f"{file} holds no adapter; give a file of a LoRA")
    return adapters, prefixes


def _check_shapes(file: pathlib.Path, name: str, adapter: _Adapter, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    rank = adapter.a.shape[0] if adapter.a.shape else 0
    for stored, wanted in ((adapter.a, (rank, inputs)), (adapter.b, (outputs, rank))):
        if stored.shape != wanted or not rank:
            raise ValueError(
                f"{file}: {stored.name!r} has shape {stored.shape}, and an adapter of rank {rank} "
                f"of this transformer has {wanted}; is it of another model?"
            )


def _scale(file: pathlib.Path, adapter: _Adapter, said: Said | None) -> float:
    """What the product counts: alpha / rank, or 1 where nothing says alpha."""
    for part, stored in (("A", adapter.a), ("B", adapter.b)):
        if stored is None:
            has = adapter.a or adapter.b or adapter.alpha
            raise ValueError(
                f"{file} has {has.name!r} without the {part} of its adapter; download it again"
            )
    rank = adapter.a.shape[0] if adapter.a.shape else 0
    if adapter.alpha is not None:
        if math.prod(adapter.alpha.shape) != 1:
            raise ValueError(f"{file}: {adapter.alpha.name!r} must be one number")
        alpha = float(read_tensor(adapter.alpha).reshape(()))
        return alpha / max(rank, 1)
    if said is None:
        return 1.0
    wanted = said.rank(adapter.module)
    if rank != wanted:
        raise ValueError(
            f"{file}: {adapter.a.name!r} is of rank {rank}, and the file says that it is "
            f"{wanted}; save it again"
        )
    return said.scale(adapter.module)
