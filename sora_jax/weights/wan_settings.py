"""How an open Wan model is sampled, as a pipeline's index and scheduler say it or Wan in prose."""

import math
import pathlib
from typing import Any, NamedTuple

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights.pipeline_config import PREDICTIONS
from sora_jax.weights.tensor_files import read_json
from sora_jax.weights.wan_config import (
    IMAGE_REPOSITORY,
    INSTEAD,
    REPOSITORY,
    check_class,
    check_fixed,
)

INDEX = "model_index.json"
# What is written beside an exported model, with what diffusers' files have no field for.
OWN_SETTINGS = "sora_jax.json"
_PIPELINES = ("WanPipeline", "WanImageToVideoPipeline")
# What Wan's own repositories say only in prose, besides `wan_settings`: the number of discrete
# levels; the shift and the level between two transformers, of text and where they see images.
_LEVELS, _SHIFT = 1000, 5.0
_TWO_OF_TEXT, _TWO_OF_IMAGES = (12.0, 0.875), (5.0, 0.9)

_FIXED_SCHEDULER = {
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "disable_corrector": [],
    "solver_p": None,
    "thresholding": False,
    "shift_terminal": None,
    **dict.fromkeys(
        ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting"),
        False,
    ),
}

# What a transformer predicts, by how the scheduler calls it.
_PREDICTIONS = {name: ours for ours, name in PREDICTIONS.items()}


class Index(NamedTuple):
    """What the index of a pipeline says.

    Attributes:
      boundary: the level between two transformers; None if it has one only.
      sees: whether its transformers see images beside the noise; None if it is not said.
    """

    boundary: float | None
    sees: bool | None


def read_index(file: pathlib.Path) -> Index:
    """Reads model_index.json.

    Raises:
      FileNotFoundError, ValueError: no such file, or a pipeline of another kind.
    """
    index = read_json(file)
    kind = index.get("_class_name")
    if kind not in _PIPELINES:
        raise ValueError(
            f"{file} is of a {kind}, and only a {' or '.join(_PIPELINES)} is read; give a model "
            f"such as {REPOSITORY} or {IMAGE_REPOSITORY}"
        )
    boundary, second = index.get("boundary_ratio"), index.get("transformer_2")
    if (boundary is None) != (second in (None, [None, None])):
        raise ValueError(
            f"{file}: transformer_2 is {second} and boundary_ratio {boundary}; a model has both, "
            "a second transformer and the level below which it takes over, or neither"
        )
    if boundary is not None and (type(boundary) not in (int, float) or not 0 < boundary < 1):
        raise ValueError(
            f"{file}: boundary_ratio is {boundary!r}, and must be between 0 and 1; Wan's are "
            f"{_TWO_OF_TEXT[1]} and, of models that see images, {_TWO_OF_IMAGES[1]}"
        )
    # With a level for each token an image is a frame that is held, and the network is that of text.
    sees = None if kind == _PIPELINES[0] else index.get("expand_timesteps") is not True
    return Index(boundary, sees)


def read_scheduler(file: pathlib.Path) -> tuple[float, str]:
    """The shift of the schedule of diffusers' UniPC, and what it takes the network to predict.

    Raises:
      FileNotFoundError, ValueError: no such file, or a scheduler that samples otherwise.
    """
    config = read_json(file)
    check_class(config, "UniPCMultistepScheduler", file)
    # A flow is not what it takes unless told.
    check_fixed(config, _FIXED_SCHEDULER, file, needed=("use_flow_sigmas",))
    prediction = config.get("prediction_type")
    if prediction not in list(_PREDICTIONS):  # nor anything that a key cannot be
        raise ValueError(
            f"{file}: prediction_type is {prediction!r}, and must be one of {sorted(_PREDICTIONS)}"
            f"; {INSTEAD}"
        )
    shift = config.get("flow_shift", 1.0)
    if type(shift) not in (int, float) or not 0 < shift < math.inf:
        raise ValueError(f"{file}: flow_shift is {shift!r}, and must be positive; 5 is Wan's own")
    return float(shift), _PREDICTIONS[prediction]


def original_schedule(dit: DiTConfig, *, two: bool) -> tuple[float, float | None]:
    """The shift, and the level between two transformers if there are two, as Wan's own code has."""
    if not two:
        return _SHIFT, None
    return _TWO_OF_IMAGES if dit.image_channels else _TWO_OF_TEXT


def wan_settings(
    vae: VAEConfig, dit: DiTConfig, shift: float, boundary: float | None
) -> dict[str, Any]:
    """How Wan samples; the model with the coarser latents is made for larger and longer clips."""
    coarse, two = vae.spatial_stride > 8, boundary is not None
    of_two = 3.5 if dit.image_channels else {"text": 4.0, "text_low": 3.0}
    return {
        "fps": 24.0 if coarse else 16.0,
        "text_length": 512,
        "shift": shift,
        "shift_tokens": None,
        "latent_limit": None,
        "steps": 40 if two else 50,
        "guidance": of_two if two else 5.0,
        "solver": "unipc",
        "size": [1280, 704] if coarse else [1280, 720] if two else [832, 480],
        "frames": 121 if coarse else 81,
        "level_grid": _LEVELS,
        "boundary": boundary,
    }


def read_own_settings(folder: pathlib.Path, wan: dict[str, Any]) -> dict[str, Any]:
    """What a model exported from here brings with it, or how Wan samples.

    Args:
      folder: of a pipeline.
      wan: of `wan_settings`, with the shift and the boundary that its other files have.

    Raises:
      ValueError: what it brings is incomplete or does not fit these.
    """
    file = folder / OWN_SETTINGS
    if not file.is_file():
        return wan
    own = read_json(file)
    settings = own.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{file} has no settings; export the model again, or remove the file")
    missing = sorted(set(wan) - {"level_grid", "boundary", *settings})
    if missing:
        raise ValueError(f"{file} lacks {missing[0]!r}; export the model again, or remove the file")
    if own.get("flow_shift") != wan["shift"]:
        raise ValueError(
            f"{file} was written beside a flow_shift of {own.get('flow_shift')}, and "
            f"scheduler_config.json has {wan['shift']}: remove the file to sample as Wan does, or "
            "put the shift back and change it in model.json after importing"
        )
    if settings.get("boundary") != wan["boundary"]:
        raise ValueError(
            f"{file} was written beside a boundary_ratio of {settings.get('boundary')}, and "
            f"{INDEX} has {wan['boundary']}: remove the file to sample as Wan does, or put the "
            "boundary back and change it in model.json after importing"
        )
    return settings
