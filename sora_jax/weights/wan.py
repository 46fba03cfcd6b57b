"""Folders of open Wan models: of diffusers' pipelines, or of Wan's own repositories.

From either come the settings and the networks that a model folder of ours holds, with the same
names. The transformer may be in Wan's own layout (config.json and tensors beside it, or two folders
of these, for high and low noise); the VAE, the text encoder and the tokenizer are always those of
diffusers' folders, because Wan's own repositories hold them as pickles.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from sora_jax.models.dit import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.original import to_diffusers_name
from sora_jax.weights.streaming import check_part
from sora_jax.weights.tensor_files import Stored, are_equal, list_tensors, read_json
from sora_jax.weights.wan_config import (
    REPOSITORY,
    REPOSITORY_TI2V,
    read_dit_config,
    read_shift,
    read_text_config,
    read_vae_config,
)

_STEM, _TEXT_STEM = "diffusion_pytorch_model", "model"
_INDEX = "model_index.json"
# Folders of the transformers in diffusers' layout, and in Wan's own where there are two.
_DIFFUSERS = {"dit": "transformer", "dit_low": "transformer_2"}
_ORIGINAL = {"dit": "high_noise_model", "dit_low": "low_noise_model"}
# What Wan's own repositories say only in prose: the shift, with one transformer and with two, the
# level between two, and the number of discrete levels.
_SHIFT, _SHIFT_OF_TWO, _BOUNDARY, _LEVELS = 5.0, 12.0, 0.875, 1000
_COPY = "shared.weight", "encoder.embed_tokens.weight"


class OpenModel(NamedTuple):
    """An open model whose names and shapes are checked, and none of whose numbers are read.

    Attributes:
      configs: sizes of the "vae", "dit", "text", and "dit_low" where there are two transformers.
      tensors: of each by diffusers' names.
      settings: what model.json holds besides its parts.
      mean, std: of the channels of latents.
      tokenizer: its tokenizer.json.
    """

    configs: dict[str, VAEConfig | DiTConfig | TextConfig]
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
    files = (_INDEX, "config.json", *(f"{name}/config.json" for name in _ORIGINAL.values()))
    return any((folder / file).is_file() for file in files)


def open_model(folder: pathlib.Path) -> OpenModel:
    """Reads configurations and headers of an open model and checks all names and shapes.

    Args:
      folder: as `is_open_model` finds it.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged, or of another model than these
        networks are; the message names the file and the remedy.
    """
    original = not (folder / _INDEX).is_file()
    folders, shift, boundary = (_find_original if original else _find_diffusers)(folder)
    configs = {part: read_dit_config(at / "config.json") for part, at in folders.items()}
    folders |= {"vae": folder / "vae", "text": folder / "text_encoder"}
    configs["vae"], mean, std = read_vae_config(folders["vae"] / "config.json")
    configs["text"] = read_text_config(folders["text"] / "config.json")
    tokenizer = _find_tokenizer(folder / "tokenizer")
    tensors = {}
    for part, at in folders.items():
        tensors[part] = list_tensors(at, _TEXT_STEM if part == "text" else _STEM)
        if part == "text":
            tensors[part] = _merge_copies(tensors[part])
        elif original and part != "vae":
            tensors[part] = _rename(tensors[part], at)
    for part, config in configs.items():
        try:
            check_part(tensors[part], part, config)
        except ValueError as error:
            raise ValueError(
                f"{folders[part]}: {error} (as its config.json has it); download it again, from "
                f"{REPOSITORY} for one"
            ) from error
    _check_fit(folder, configs)
    settings = _settings(configs["vae"], shift, boundary)
    return OpenModel(configs, tensors, settings, mean, std, tokenizer)


def _find_diffusers(folder: pathlib.Path) -> tuple[dict[str, pathlib.Path], float, float | None]:
    """Folders of the transformers, the shift, and the level between two, of a pipeline."""
    boundary = _read_boundary(folder / _INDEX)
    names = {part: folder / name for part, name in _DIFFUSERS.items()}
    if boundary is None:
        del names["dit_low"]
    return names, read_shift(folder / "scheduler" / "scheduler_config.json"), boundary


def _find_original(folder: pathlib.Path) -> tuple[dict[str, pathlib.Path], float, float | None]:
    """The same of a folder in Wan's own layout, which has nothing of it but the transformers."""
    two = not (folder / "config.json").is_file()
    names = {part: folder / name for part, name in _ORIGINAL.items()} if two else {"dit": folder}
    for at in names.values():
        config = read_json(at / "config.json")
        if config.get("_class_name") != "WanModel":
            raise ValueError(
                f"{at} is one network and no model; give the folder around it, with {_INDEX}"
            )
    _check_companions(folder, REPOSITORY_TI2V if config.get("model_type") == "ti2v" else REPOSITORY)
    return (names, _SHIFT_OF_TWO, _BOUNDARY) if two else (names, _SHIFT, None)


def _check_fit(folder: pathlib.Path, configs: dict[str, Any]) -> None:
    """Raises ValueError where networks that are whole by themselves do not fit each other."""
    vae, dit, text = (configs[part] for part in ("vae", "dit", "text"))
    for what, one, other in (
        ("latent channels", dit.latent_channels, vae.latent_channels),
        ("text features", dit.text_width, text.width),
    ):
        if one != other:
            raise ValueError(
                f"{folder}: the transformer takes {one} {what} and is given {other}; its parts are "
                "of different models: take all of them from one"
            )
    if configs.get("dit_low", dit) != dit:
        raise ValueError(
            f"{folder}: its transformers of high and of low noise have different sizes; they are "
            "of different models: take both from one"
        )


def _settings(vae: VAEConfig, shift: float, boundary: float | None) -> dict[str, Any]:
    """How Wan samples; the model with the coarser latents is made for larger and longer clips."""
    coarse, two = vae.spatial_stride > 8, boundary is not None
    return {
        "fps": 24.0 if coarse else 16.0,
        "text_length": 512,
        "shift": shift,
        "shift_tokens": None,
        "latent_limit": None,
        "steps": 40 if two else 50,
        "guidance": {"text": 4.0, "text_low": 3.0} if two else 5.0,
        "solver": "unipc",
        "size": [1280, 704] if coarse else [1280, 720] if two else [832, 480],
        "frames": 121 if coarse else 81,
        "level_grid": _LEVELS,
        "boundary": boundary,
    }


def _read_boundary(file: pathlib.Path) -> float | None:
    """The level between two transformers, of a pipeline's index; None if it has one only.

    Raises:
      ValueError: a pipeline of another kind.
    """
    index = read_json(file)
    kind, held = index.get("_class_name"), index.get("expand_timesteps")
    # With a level for each token an image is a frame that is held, and the network is the same.
    if kind != "WanPipeline" and not (kind == "WanImageToVideoPipeline" and held is True):
        raise ValueError(
            f"{file} is of a {kind}, and only a WanPipeline is read, or a WanImageToVideoPipeline "
            f"with expand_timesteps; give a text-to-video model such as {REPOSITORY}"
        )
    boundary, second = index.get("boundary_ratio"), index.get("transformer_2")
    if (boundary is None) != (second in (None, [None, None])):
        raise ValueError(
            f"{file}: transformer_2 is {second} and boundary_ratio {boundary}; a model has both, "
            "a second transformer and the level below which it takes over, or neither"
        )
    if boundary is not None and (type(boundary) not in (int, float) or not 0 < boundary < 1):
        raise ValueError(
            f"{file}: boundary_ratio is {boundary!r}, and must be between 0 and 1; Wan's is "
            f"{_BOUNDARY}"
        )
    return boundary


def _check_companions(folder: pathlib.Path, repository: str) -> None:
    """Raises FileNotFoundError where a folder in Wan's layout lacks what it holds as pickles."""
    missing = [n for n in ("vae", "text_encoder", "tokenizer") if not (folder / n).is_dir()]
    if missing:
        pickles = sorted(file.name for file in folder.glob("*.pth"))
        instead = f" ({', '.join(pickles)} are pickles and not read)" if pickles else ""
        raise FileNotFoundError(
            f"{folder} lacks the folders {', '.join(missing)}{instead}; copy them from {repository}"
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
