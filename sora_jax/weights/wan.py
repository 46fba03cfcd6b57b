"""Folders of open Wan models: of diffusers' pipelines, or of Wan's own repositories.

From either come the settings and the networks that a model folder of ours holds, with the same
names. The transformer may be in Wan's own layout (config.json and tensors beside it, or two folders
of these, for high and low noise); the VAE, the text encoder and the tokenizer are always those of
diffusers' folders, because Wan's own repositories hold them as pickles.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.entries import name_image_tensors
from sora_jax.weights.fit import check_fit
from sora_jax.weights.original import to_diffusers_name
from sora_jax.weights.streaming import check_part
from sora_jax.weights.tensor_files import Stored, are_equal, list_tensors, read_json
from sora_jax.weights.wan_config import (
    IMAGE_REPOSITORY,
    REPOSITORY,
    REPOSITORY_TI2V,
    read_dit_config,
    read_image_config,
    read_text_config,
    read_vae_config,
    with_image_reader,
)
from sora_jax.weights.wan_settings import (
    INDEX,
    original_schedule,
    read_index,
    read_own_settings,
    read_scheduler,
    wan_settings,
)

_STEM, _TEXT_STEM = "diffusion_pytorch_model", "model"
# Folders of the transformers in diffusers' layout, and in Wan's own where there are two.
_DIFFUSERS = {"dit": "transformer", "dit_low": "transformer_2"}
_ORIGINAL = {"dit": "high_noise_model", "dit_low": "low_noise_model"}
_COPY = "shared.weight", "encoder.embed_tokens.weight"


class OpenModel(NamedTuple):
    """An open model whose names and shapes are checked, and none of whose numbers are read.

    Attributes:
      configs: sizes of the "vae", "dit", "text", "dit_low" where there are two transformers, and of
        the "image" encoder if there is one.
      tensors: of each by diffusers' names.
      settings: what model.json holds besides its parts.
      mean, std: of the channels of latents.
      tokenizer: its tokenizer.json.
    """

    configs: dict[str, VAEConfig | DiTConfig | TextConfig | ImageConfig]
    tensors: dict[str, dict[str, Stored]]
    settings: dict[str, Any]
    mean: list[float]
    std: list[float]
    tokenizer: pathlib.Path

    def part_settings(self, part: str) -> dict[str, Any]:
        """What model.json holds of a part."""
        settings = dataclasses.asdict(self.configs[part])
        return {
            **settings,
            **({"latent_mean": self.mean, "latent_std": self.std} if part == "vae" else {}),
        }


def is_open_model(folder: pathlib.Path) -> bool:
    """Whether a folder is of diffusers or of Wan, and so for `open_model` to accept or refuse."""
    files = (INDEX, "config.json", *(f"{name}/config.json" for name in _ORIGINAL.values()))
    return any((folder / file).is_file() for file in files)


def open_model(folder: pathlib.Path) -> OpenModel:
    """Reads configurations and headers of an open model and checks all names and shapes.

    Args:
      folder: as `is_open_model` finds it.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or of another model than these
        networks are; the message names the file and the remedy.
    """
    original = not (folder / INDEX).is_file()
    transformers, schedule = (_open_original if original else _open_diffusers)(folder)
    places = {part: one.folder for part, one in transformers.items()}
    configs = {part: one.config for part, one in transformers.items()}
    tensors = {part: one.tensors for part, one in transformers.items()}
    places |= {"vae": folder / "vae", "text": folder / "text_encoder"}
    configs["vae"], mean, std = read_vae_config(places["vae"] / "config.json")
    configs["text"] = read_text_config(places["text"] / "config.json")
    tokenizer = _find_tokenizer(folder / "tokenizer")
    tensors["vae"] = list_tensors(places["vae"], _STEM)
    tensors["text"] = _merge_copies(list_tensors(places["text"], _TEXT_STEM))
    if configs["dit"].image_width:
        places["image"] = folder / "image_encoder"
        configs["image"] = read_image_config(folder)
        tensors["image"] = name_image_tensors(list_tensors(places["image"], _TEXT_STEM))
    for part, config in configs.items():
        try:
            check_part(tensors[part], part, config)
        except ValueError as error:
            raise ValueError(
                f"{places[part]}: {error} (as its config.json has it); download it again, from "
                f"{REPOSITORY} for one"
            ) from error
    check_fit(folder, configs, mean, std)
    settings = wan_settings(configs["vae"], configs["dit"], *schedule)
    if not original:
        settings = read_own_settings(folder, settings)
    return OpenModel(configs, tensors, settings, mean, std, tokenizer)


class _Transformer(NamedTuple):
    folder: pathlib.Path
    config: DiTConfig
    tensors: dict[str, Stored]


def _open_diffusers(
    folder: pathlib.Path,
) -> tuple[dict[str, _Transformer], tuple[float, float | None]]:
    """The transformers of a pipeline; the shift, and the level between two."""
    index = read_index(folder / INDEX)
    places = {part: folder / name for part, name in _DIFFUSERS.items()}
    if index.boundary is None:
        del places["dit_low"]
    configs = {part: read_dit_config(at / "config.json") for part, at in places.items()}
    shift, prediction = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    transformers = {}
    for part, at in places.items():
        config = dataclasses.replace(configs[part], prediction=prediction)
        transformers[part] = _Transformer(at, config, list_tensors(at, _STEM))
    channels = configs["dit"].image_channels
    if index.sees is not None and index.sees != bool(channels):
        raise ValueError(
            f"{folder / INDEX} is of a WanImageToVideoPipeline, whose transformer sees images "
            f"beside the noise, or none with expand_timesteps; this one has {channels} channels of "
            f"them: take both from one model, such as {IMAGE_REPOSITORY}"
        )
    return transformers, (shift, index.boundary)


def _open_original(
    folder: pathlib.Path,
) -> tuple[dict[str, _Transformer], tuple[float, float | None]]:
    """The same of a folder in Wan's own layout, which has nothing of it but the transformers."""
    two = not (folder / "config.json").is_file()
    places = {part: folder / name for part, name in _ORIGINAL.items()} if two else {"dit": folder}
    transformers = {}
    for part, at in places.items():
        if read_json(at / "config.json").get("_class_name") != "WanModel":
            raise ValueError(
                f"{at} is one network and no model; give the folder around it, with {INDEX}"
            )
        config = read_dit_config(at / "config.json")
        tensors = _rename(list_tensors(at, _STEM), at)
        config = with_image_reader(config, {name: x.shape for name, x in tensors.items()})
        transformers[part] = _Transformer(at, config, tensors)
    dit = transformers["dit"].config
    _check_companions(folder, dit)
    return transformers, original_schedule(dit, two=two)


def _check_companions(folder: pathlib.Path, dit: DiTConfig) -> None:
    """Raises FileNotFoundError where a folder in Wan's layout lacks what it holds as pickles."""
    needed = ["vae", "text_encoder", "tokenizer"]
    needed += ["image_encoder", "image_processor"] if dit.image_width else []
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        pickles = sorted(file.name for file in folder.glob("*.pth"))
        instead = f" ({', '.join(pickles)} are pickles and not read)" if pickles else ""
        # The VAE of 48 channels is that of Wan 2.2 TI2V 5B.
        text = REPOSITORY_TI2V if dit.latent_channels == 48 else REPOSITORY
        raise FileNotFoundError(
            f"{folder} lacks the folders {', '.join(missing)}{instead}; copy them from "
            f"{IMAGE_REPOSITORY if dit.image_width else text}"
        )


def _find_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    file = folder / "tokenizer.json"
    if file.is_file():
        return file
    if (folder / "spiece.model").is_file():
        raise FileNotFoundError(
            f"{folder} holds the tokenizer as spiece.model only; put the tokenizer.json of "
            f"google/umt5-xxl or of {REPOSITORY} beside it"
        )
    raise FileNotFoundError(f"{file} is missing; download the whole folder again")


def _rename(tensors: dict[str, Stored], folder: pathlib.Path) -> dict[str, Stored]:
    renamed = {to_diffusers_name(name): stored for name, stored in tensors.items()}
    if len(renamed) != len(tensors):
        raise ValueError(
            f"{folder} holds a tensor by Wan's name and by diffusers'; remove one of the two"
        )
    return renamed


def _merge_copies(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """UMT5 has one embedding, which files may hold by either name or by both."""
    name, copy = _COPY
    other = tensors.get(copy)
    if other is None:
        return tensors
    rest = {key: stored for key, stored in tensors.items() if key != copy}
    if not are_equal(rest.setdefault(name, other), other):
        raise ValueError(f"{other.file}: {name!r} and {copy!r} differ; download it again")
    return rest
