"""A model folder of ours as the folder of a diffusers pipeline, tensor by tensor."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sora_jax.language.tokenizer import save_for_transformers
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights import pipeline_config
from sora_jax.weights.diffusers import check_shapes, list_entries
from sora_jax.weights.model_folder import load_description
from sora_jax.weights.settings import from_settings
from sora_jax.weights.tensor_files import INDEX, Stored, list_tensors, read_tensor, write_tensors
from sora_jax.weights.wan_settings import OWN_SETTINGS

_CONFIGS = {"vae": VAEConfig, "dit": DiTConfig, "text": TextConfig}
# Folder and stem of the files of each part.
_PLACES = {
    "vae": ("vae", "diffusion_pytorch_model"),
    "dit": ("transformer", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
}
# Bytes of numbers in a file; what is larger is divided, as diffusers' own files are.
_SHARD = 5_000_000_000
# Without it older releases of transformers refuse a file.
_METADATA = {"format": "pt"}


class FolderModel(NamedTuple):
    """A model folder of which nothing but descriptions and headers is read.

    Attributes:
      configs: sizes of the "vae", "dit" and "text".
      tensors: of each by our paths.
      settings: what model.json holds besides its parts.
      mean, std: of the channels of latents.
      tokenizer: its tokenizer.json.
    """

    configs: dict[str, Any]
    tensors: dict[str, dict[str, Stored]]
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


def open_folder(folder: pathlib.Path) -> FolderModel:
    """Reads descriptions and headers of a model folder and checks all names and shapes.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or of a model that diffusers' text
        to video has no place for.
    """
    description = load_description(folder)
    parts = description.get("parts", {})
    if set(parts) != set(_CONFIGS):
        raise ValueError(
            f"{folder} has the parts {sorted(parts)}, and a pipeline is made of {sorted(_CONFIGS)} "
            "and no others: give the model of a run of the transformer, such as WORKDIR/model"
        )
    settings = {k: v for k, v in description.items() if k not in ("format", "parts")}
    try:
        vae = dict(parts["vae"])
        mean, std = vae.pop("latent_mean"), vae.pop("latent_std")
        configs = {k: from_settings(_CONFIGS[k], {**parts, "vae": vae}[k]) for k in _CONFIGS}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/model.json: {error}; write the model folder again") from error
    vae, dit, text = (configs[part] for part in ("vae", "dit", "text"))
    if dit.image_channels:
        raise ValueError(
            f"{folder}: its transformer sees {dit.image_channels} channels of images beside the "
            "noise, and what is exported is text to video; it cannot be exported"
        )
    for what, one, other in (
        ("latent channels", dit.latent_channels, vae.latent_channels),
        ("means and deviations of latents", len(mean), vae.latent_channels),
        ("means and deviations of latents", len(std), vae.latent_channels),
        ("text features", dit.text_width, text.width),
    ):
        if one != other:
            raise ValueError(f"{folder}: {one} and {other} {what} do not fit; take parts of one")
    if vae.temporal_stride != 4:
        raise ValueError(
            f"{folder}: its VAE makes a latent frame of {vae.temporal_stride} frames, and that of "
            "diffusers of 4 always; it cannot be exported"
        )
    tensors = {part: list_tensors(folder, part) for part in configs}
    for part, config in configs.items():
        wanted = {entry.path: entry.shape for entry in list_entries(part, config)}
        try:
            check_shapes({path: stored.shape for path, stored in tensors[part].items()}, wanted)
        except ValueError as error:
            raise ValueError(f"{folder}/{part}.safetensors: {error}") from error
    return FolderModel(configs, tensors, settings, mean, std, folder / "tokenizer.json")


def write_pipeline(model: FolderModel, output: pathlib.Path, shift: float) -> None:
    """Writes a model as the folder of a WanPipeline; where that fails, nothing is left.

    Beside diffusers' files `OWN_SETTINGS` holds what these have no field for, for the way back.

    Args:
      model: of `open_folder`.
      output: folder, which does not exist yet or is empty.
      shift: of the schedule, for every size.

    Raises:
      ValueError: the output exists, is too small, or a file is damaged.
    """
    vae, dit, text = (model.configs[part] for part in ("vae", "dit", "text"))
    tensors = {
        part: _list_theirs(model.tensors[part], part, config)
        for part, config in model.configs.items()
    }
    with _made(output, sum(x.size for part in tensors.values() for x in part)) as scratch:
        for name, value in {
            "model_index.json": pipeline_config.pipeline_index(),
            "transformer/config.json": pipeline_config.dit_config(dit),
            "vae/config.json": pipeline_config.vae_config(vae, model.mean, model.std),
            "text_encoder/config.json": pipeline_config.text_config(text),
            "scheduler/scheduler_config.json": pipeline_config.scheduler_config(
                shift, dit.prediction
            ),
            OWN_SETTINGS: {"flow_shift": shift, "settings": model.settings},
        }.items():
            (scratch / name).parent.mkdir(exist_ok=True)
            _write_json(scratch / name, value)
        save_for_transformers(model.tokenizer, scratch / "tokenizer")
        for part, (folder, stem) in _PLACES.items():
            _write_shards(scratch / folder, stem, tensors[part])


def _list_theirs(tensors: dict[str, Stored], part: str, config: Any) -> list[_Tensor]:
    result = []
    for entry in list_entries(part, config):
        stored, shape = tensors[entry.path], entry.their_shape()
        for layer, name in enumerate(entry.names()):
            read = functools.partial(read_tensor, stored, layer if entry.stacked else None)
            result.append(_Tensor(name, shape, stored.dtype, read, entry.layout.theirs))
    return result


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
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < size:
        raise ValueError(
            f"{output} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; make "
            "room, or name a folder elsewhere"
        )
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".writing-") as scratch:
        folder = pathlib.Path(scratch) / "pipeline"
        folder.mkdir()
        yield folder
        os.replace(folder, output)


def _write_json(file: pathlib.Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
