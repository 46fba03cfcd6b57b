"""Folders of open Wan models: of diffusers' pipelines, or of Wan's own repositories.

From either come the settings and the networks that a model folder of ours holds, with the same
names. The transformer may be in Wan's own layout (config.json and tensors beside it); the VAE, the
text encoder and the tokenizer are always those of diffusers' folders, because Wan's own
repositories hold them as pickles.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.diffusers import name_image_tensors
from sora_jax.weights.original import to_diffusers_name
from sora_jax.weights.streaming import check_part
from sora_jax.weights.tensor_files import Stored, are_equal, list_tensors, read_json
from sora_jax.weights.wan_config import (
    IMAGE_REPOSITORY,
    REPOSITORY,
    read_dit_config,
    read_image_config,
    read_scheduler,
    read_text_config,
    read_vae_config,
    with_image_reader,
)

_STEM, _TEXT_STEM = "diffusion_pytorch_model", "model"
_INDEX = "model_index.json"
_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
# What Wan's own repositories say only in prose: the shift, and the number of discrete levels.
_SHIFT, _LEVELS = 5.0, 1000
# What is written beside an exported model, with what diffusers' files have no field for.
OWN_SETTINGS = "sora_jax.json"
_COPY = "shared.weight", "encoder.embed_tokens.weight"


class OpenModel(NamedTuple):
    """An open model whose names and shapes are checked, and none of whose numbers are read.

    Attributes:
      configs: sizes of the "vae", "dit" and "text", and of the "image" encoder if there is one.
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
    return (folder / _INDEX).is_file() or (folder / "config.json").is_file()


def open_model(folder: pathlib.Path) -> OpenModel:
    """Reads configurations and headers of an open model and checks all names and shapes.

    Args:
      folder: as `is_open_model` finds it.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or of another model than these
        networks are; the message names the file and the remedy.
    """
    original = not (folder / _INDEX).is_file()
    if not original:
        _check_index(folder / _INDEX)
    elif read_json(folder / "config.json").get("_class_name") != "WanModel":
        raise ValueError(
            f"{folder} is one network and no model; give the folder around it, with {_INDEX}"
        )
    dit_folder = folder if original else folder / "transformer"
    dit = read_dit_config(dit_folder / "config.json")
    tensors = {"dit": list_tensors(dit_folder, _STEM)}
    if original:
        tensors["dit"] = _rename(tensors["dit"], folder)
        dit = with_image_reader(dit, {name: x.shape for name, x in tensors["dit"].items()})
        _check_companions(folder, dit)
    vae, mean, std = read_vae_config(folder / "vae" / "config.json")
    text = read_text_config(folder / "text_encoder" / "config.json")
    tokenizer = _find_tokenizer(folder / "tokenizer")
    shift = _SHIFT
    if not original:
        shift, prediction = read_scheduler(folder / "scheduler" / "scheduler_config.json")
        dit = dataclasses.replace(dit, prediction=prediction)
    tensors["vae"] = list_tensors(folder / "vae", _STEM)
    tensors["text"] = _merge_copies(list_tensors(folder / "text_encoder", _TEXT_STEM))
    configs = {"vae": vae, "dit": dit, "text": text}
    places = {"dit": dit_folder, "vae": folder / "vae", "text": folder / "text_encoder"}
    if dit.image_width:
        places["image"] = folder / "image_encoder"
        configs["image"] = read_image_config(folder)
        tensors["image"] = name_image_tensors(list_tensors(places["image"], _TEXT_STEM))
    for part, config in configs.items():
        at = places[part]
        try:
            check_part(tensors[part], part, config)
        except ValueError as error:
            raise ValueError(
                f"{at}: {error} (as its config.json has it); download it again, from {REPOSITORY} "
                "for one"
            ) from error
    for what, one, other in (
        ("latent channels", dit.latent_channels, vae.latent_channels),
        ("text features", dit.text_width, text.width),
        *_image_sizes(dit, vae, configs.get("image")),
    ):
        if one != other:
            raise ValueError(
                f"{folder}: the transformer takes {one} {what} and is given {other}; its parts are "
                "of different models: take all of them from one"
            )
    settings = _settings(vae, shift) if original else _read_settings(folder, vae, shift)
    return OpenModel(configs, tensors, settings, mean, std, tokenizer)


def _read_settings(folder: pathlib.Path, vae: VAEConfig, shift: float) -> dict[str, Any]:
    """What a model exported from here brings with it, or how Wan samples."""
    file = folder / OWN_SETTINGS
    if not file.is_file():
        return _settings(vae, shift)
    own = read_json(file)
    settings = own.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} has no settings; export the model again, or remove the file")
    missing = sorted(set(_settings(vae, shift)) - {"level_grid", *settings})
    if missing:
        raise ValueError(f"{file} lacks {missing[0]!r}; export the model again, or remove the file")
    if own.get("flow_shift") != shift:
        raise ValueError(
            f"{file} was written beside a flow_shift of {own.get('flow_shift')}, and "
            f"scheduler_config.json has {shift}: remove the file to sample as Wan does, or put "
            "the shift back and change it in model.json after importing"
        )
    return settings


def _image_sizes(
    dit: DiTConfig, vae: VAEConfig, image: ImageConfig | None
) -> list[tuple[str, int, int]]:
    """What a transformer takes of images, how much, and how much there is."""
    sizes = []
    if dit.image_channels:
        given = vae.temporal_stride + vae.latent_channels
        sizes.append(("channels of images beside the noise", dit.image_channels, given))
    if image is not None:
        sizes.append(("channels of image tokens", dit.image_width, image.width))
    if dit.image_positions:
        sizes.append(("image tokens of two images", dit.image_positions, 2 * image.tokens))
    return sizes


def _settings(vae: VAEConfig, shift: float) -> dict[str, Any]:
    """How Wan samples; the model with the coarser latents is made for larger and longer clips."""
    coarse = vae.spatial_stride > 8
    return {
        "fps": 24.0 if coarse else 16.0,
        "text_length": 512,
        "shift": shift,
        "shift_tokens": None,
        "latent_limit": None,
        "steps": 50,
        "guidance": 5.0,
        "solver": "unipc",
        "size": [1280, 704] if coarse else [832, 480],
        "frames": 121 if coarse else 81,
        "level_grid": _LEVELS,
    }


def _check_index(file: pathlib.Path) -> None:
    index = read_json(file)
    if index.get("_class_name") not in _PIPELINES:
        raise ValueError(
            f"{file} is of a {index.get('_class_name')}, and only a {' or '.join(_PIPELINES)} is "
            f"read; give a model such as {REPOSITORY} or {IMAGE_REPOSITORY}"
        )
    second = index.get("transformer_2")
    if second not in (None, [None, None]) or index.get("boundary_ratio") is not None:
        raise ValueError(
            f"{file} has two transformers, one for high and one for low noise, and models here "
            f"have one; give a model such as {REPOSITORY}"
        )


def _check_companions(folder: pathlib.Path, dit: DiTConfig) -> None:
    """Raises FileNotFoundError where a folder in Wan's layout lacks what it holds as pickles."""
    needed = ["vae", "text_encoder", "tokenizer"]
    needed += ["image_encoder", "image_processor"] if dit.image_width else []
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        pickles = sorted(file.name for file in folder.glob("*.pth"))
        instead = f" ({', '.join(pickles)} are pickles and not read)" if pickles else ""
        raise FileNotFoundError(
            f"{folder} lacks the folders {', '.join(missing)}{instead}; copy them from "
            f"{IMAGE_REPOSITORY if dit.image_width else REPOSITORY}"
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
