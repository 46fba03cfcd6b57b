"""A model folder of ours as the folder of a diffusers pipeline, tensor by tensor."""

import contextlib
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sora_jax.language.tokenizer import save_for_transformers
from sora_jax.weights import pipeline_config
from sora_jax.weights.entries import list_entries
from sora_jax.weights.fit import check_adapted
from sora_jax.weights.lora import lora_products, rounded
from sora_jax.weights.lora_folder import take_adapters
from sora_jax.weights.model_folder import check_space, load_description
from sora_jax.weights.parts import open_parts
from sora_jax.weights.tensor_files import INDEX, Stored, list_tensors, read_tensor, write_tensors
from sora_jax.weights.wan_settings import OWN_SETTINGS

# Folder and stem of the files of each part, the first three of which every model has.
_PLACES = {
    "vae": ("vae", "diffusion_pytorch_model"),
    "dit": ("transformer", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
    "dit_low": ("transformer_2", "diffusion_pytorch_model"),
    "image": ("image_encoder", "model"),
}
_NEEDED = {"vae", "dit", "text"}
# Bytes of numbers in a file; what is larger is divided, as diffusers' own files are.
_SHARD = 5_000_000_000
# Without it older releases of transformers refuse a file.
_METADATA = {"format": "pt"}


class FolderModel(NamedTuple):
    """A model folder of which nothing but descriptions and headers is read.

    Attributes:
      configs: sizes of each part, see `weights.parts.Parts`.
      tensors: of each by our paths.
      products: what adapters add to a transformer, by part, see `weights.lora.lora_products`.
      settings: what model.json holds besides its parts.
      mean, std: of the channels of latents.
      tokenizer: its tokenizer.json.
    """

    configs: dict[str, Any]
    tensors: dict[str, dict[str, Stored]]
    products: dict[str, dict[str, list[Callable[[], np.ndarray]]]]
    settings: dict[str, Any]
    mean: list[float]
    std: list[float]
    tokenizer: pathlib.Path


class _Tensor(NamedTuple):
    """One of diffusers' tensors, and what makes it of ours."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    reorder: Callable[[np.ndarray], np.ndarray]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def open_folder(
    folder: pathlib.Path,
    lora: pathlib.Path | str | None = None,
    lora_low: pathlib.Path | str | None = None,
) -> FolderModel:
    """Reads descriptions and headers of a model folder and checks all names and shapes.

    Args:
      folder: of a model, or of a LoRA run, whose adapters are added to its model.
      lora, lora_low: adapters to add, see `sora_jax.load`.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or of a model that diffusers has no
        place for.
    """
    folder, adapters, adapted = take_adapters(folder, lora, lora_low)
    described = load_description(folder).get("parts", {})
    if not _NEEDED <= set(described) <= set(_PLACES):
        raise ValueError(
            f"{folder} has the parts {sorted(described)}, and a pipeline is made of "
            f"{sorted(_NEEDED)} and at most {sorted(set(_PLACES) - _NEEDED)} besides: give the "
            "model of a run of the transformer, such as WORKDIR/model"
        )
    parts = open_parts(folder, None)
    stride = parts.configs["vae"].temporal_stride
    if stride != 4:
        raise ValueError(
            f"{folder}: its VAE makes a latent frame of {stride} frames, and that of diffusers of "
            "4 always; it cannot be exported"
        )
    check_adapted(folder, parts.configs, adapters)
    products = {part: lora_products(file, parts.configs[part]) for part, file in adapters.items()}
    # Numbers as they are written, where `parts` has rounded them.
    mean, std = (described["vae"][f"latent_{name}"] for name in ("mean", "std"))
    return FolderModel(
        parts.configs,
        {part: list_tensors(folder, part) for part in parts.configs},
        products,
        parts.settings if adapted is None else adapted.settings,
        mean,
        std,
        parts.tokenizer,
    )


def write_pipeline(model: FolderModel, output: pathlib.Path, shift: float) -> None:
    """Writes a model as the folder of a pipeline; where that fails, nothing is left.

    Beside diffusers' files `OWN_SETTINGS` holds what these have no field for, for the way back.

    Args:
      model: of `open_folder`.
      output: folder, which does not exist yet or is empty.
      shift: of the schedule, for every size.

    Raises:
      ValueError: the output exists, is too small, or a file is damaged.
    """
    vae, dit, text = (model.configs[part] for part in ("vae", "dit", "text"))
    image, boundary = model.configs.get("image"), model.settings.get("boundary")
    tensors = {
        part: _list_theirs(model.tensors[part], part, config, model.products.get(part, {}))
        for part, config in model.configs.items()
    }
    descriptions = {
        "model_index.json": pipeline_config.pipeline_index(dit, vae, image, boundary),
        "transformer/config.json": pipeline_config.dit_config(dit),
        "vae/config.json": pipeline_config.vae_config(vae, model.mean, model.std),
        "text_encoder/config.json": pipeline_config.text_config(text),
        "scheduler/scheduler_config.json": pipeline_config.scheduler_config(shift, dit.prediction),
        OWN_SETTINGS: {"flow_shift": shift, "settings": model.settings},
    }
    if boundary is not None:
        descriptions["transformer_2/config.json"] = pipeline_config.dit_config(dit)
    if image is not None:
        descriptions["image_encoder/config.json"] = pipeline_config.image_config(image)
        processor = pipeline_config.processor_config(image)
        descriptions["image_processor/preprocessor_config.json"] = processor
    with _made(output, sum(x.size for part in tensors.values() for x in part)) as scratch:
        for name, value in descriptions.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            _write_json(scratch / name, value)
        save_for_transformers(model.tokenizer, scratch / "tokenizer")
        for part, theirs in tensors.items():
            folder, stem = _PLACES[part]
            _write_shards(scratch / folder, stem, theirs)


def _list_theirs(
    tensors: dict[str, Stored],
    part: str,
    config: Any,
    products: dict[str, list[Callable[[], np.ndarray]]],
) -> list[_Tensor]:
    result = []
    for entry in list_entries(part, config):
        stored, shape = tensors[entry.path], entry.their_shape()
        for layer, name in enumerate(entry.names()):
            read = functools.partial(read_tensor, stored, layer if entry.stacked else None)
            reorder = entry.layout.theirs
            if name in products:
                reorder = functools.partial(_add, reorder, products[name], name)
            result.append(_Tensor(name, shape, stored.dtype, read, reorder))
    return result


def _add(
    reorder: Callable[[np.ndarray], np.ndarray],
    products: list[Callable[[], np.ndarray]],
    name: str,
    x: np.ndarray,
) -> np.ndarray:
    """A tensor of diffusers with its adapters, in the dtype that it has without."""
    total = np.float32(reorder(x))
    for product in products:
        total = total + product()
    return rounded(total, x.dtype, name)


def _write_shards(folder: pathlib.Path, stem: str, tensors: list[_Tensor]) -> None:
    """STEM.safetensors, or several files and the index that says what is in which."""
    shards: list[list[_Tensor]] = [[]]
    for x in tensors:
        if shards[-1] and sum(y.size for y in shards[-1]) + x.size > _SHARD:
            shards.append([])
        shards[-1].append(x)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        places = {x.name: name for name, shard in zip(names, shards) for x in shard}
        total = {"total_size": sum(x.size for x in tensors)}
        _write_json(folder / f"{stem}{INDEX}", {"metadata": total, "weight_map": places})
    for name, shard in zip(names, shards):
        layout = {x.name: (x.shape, x.dtype) for x in shard}
        read = ((x.name, x.reorder(x.read())) for x in shard)
        write_tensors(folder / name, layout, read, metadata=_METADATA)


@contextlib.contextmanager
def _made(output: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """A folder beside the output to write to, which becomes it at the end, or nothing does."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder; remove it or name another")
    check_space(output, size)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".writing-") as scratch:
        folder = pathlib.Path(scratch) / "pipeline"
        folder.mkdir()
        yield folder
        os.replace(folder, output)


def _write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
