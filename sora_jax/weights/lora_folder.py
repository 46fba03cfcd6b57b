"""The model folder of a LoRA run: adapters, and which model they belong to.

`model.json` names the folder of that model and a checksum of its transformer, of the kind that
takes a moment at any size (`digests.weights_sha256`); the adapters are a file that diffusers reads
too, see `weights.lora`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from sora_jax.digests import weights_sha256
from sora_jax.weights.lora import FILE
from sora_jax.weights.model_folder import LORA_FORMAT, load_description, replaced
from sora_jax.weights.tensor_files import read_json

# What model.json says of the model that adapters are for: its folder, its transformer's checksum.
BASE = "base", "base_transformer_sha256"


# Of folders whose checksum was that of the whole file.
_BEFORE = "sora_jax lora 1"


class Adapted(NamedTuple):
    """What the folder of a LoRA run says.

    Attributes:
      base: model folder that the adapters were trained on.
      file: of the adapters.
      settings: of sampling, as model.json of a whole model has them.
    """

    base: pathlib.Path
    file: pathlib.Path
    settings: dict[str, Any]


def transformer_sha256(folder: pathlib.Path | str) -> str:
    """What tells the transformer of a model folder from others.

    Raises:
      FileNotFoundError, ValueError: it is no model folder with a transformer.
    """
    file = pathlib.Path(folder) / "dit.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; give a model folder with a transformer")
    return weights_sha256(file)


def save_lora(
    folder: pathlib.Path | str,
    tensors: Mapping[str, np.ndarray],
    base: pathlib.Path | str,
    sha256: str,
    settings: Mapping[str, Any],
) -> None:
    """Writes the folder; files of the same names are replaced one by one, whole.

    Args:
      folder: made if missing.
      tensors: of `lora_to_diffusers`.
      base: model folder that the adapters belong to.
      sha256: of its transformer.
      settings: JSON values of the model as a whole, see `save_model`.
    """
    description = {
        "format": LORA_FORMAT,
        **dict(zip(BASE, (str(pathlib.Path(base).expanduser().resolve()), sha256))),
        **settings,
    }
    with replaced(folder) as scratch:
        save_file(dict(tensors), scratch / FILE, metadata={"format": "pt"})
        (scratch / "model.json").write_text(json.dumps(description, indent=2) + "\n")


def find_adapted(folder: pathlib.Path) -> Adapted | None:
    """The contents of the folder of a LoRA run; None if it is any other folder.

    Raises:
      ValueError: it was written before the checksum was what it is now.
    """
    description = folder / "model.json"
    if not description.is_file():
        return None
    try:
        said = read_json(description)
    except ValueError:  # of no kind: whoever reads it as a model says so
        return None
    if said.get("format") == _BEFORE:
        raise ValueError(
            f"{description} is of the format {_BEFORE!r}, which is no longer read: "
            f"{_by_themselves(folder / FILE)}"
        )
    if said.get("format") != LORA_FORMAT:
        return None
    return Adapted(pathlib.Path(str(said.get("base"))), folder / FILE, said)


def _by_themselves(file: pathlib.Path) -> str:
    return f"give the model and the adapters by themselves: MODEL with --lora={file}"


def _check_base(adapted: Adapted) -> None:
    """Raises FileNotFoundError or ValueError if the model of adapters is gone or has changed."""
    base, description = adapted.base, adapted.file.parent / "model.json"
    remedy = _by_themselves(adapted.file)
    try:
        load_description(base)
        found = transformer_sha256(base)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{description} has adapters for the model in {base}: {error}; if it was moved, "
            f"{remedy}"
        ) from error
    if found != adapted.settings.get(BASE[1]):
        raise ValueError(
            f"{description} has adapters for the model that was in {base}, where there is another "
            f"one now; if it was moved, {remedy}"
        )


def take_adapters(
    folder: pathlib.Path, lora: pathlib.Path | str | None
) -> tuple[pathlib.Path, pathlib.Path | str | None, Adapted | None]:
    """The model that is meant, the adapters to add to it if any, and what a LoRA run says.

    Args:
      folder: of a model or of a LoRA run, which has its adapters.
      lora: adapters that are asked for.

    Raises:
      FileNotFoundError, ValueError: the model of a LoRA run is gone or has changed, or its folder
        is too old, or there are adapters for one that has them.
    """
    adapted = find_adapted(folder)
    if adapted is None:
        return folder, lora, None
    if lora is not None:
        raise ValueError(
            f"{folder} is of a LoRA run and has adapters already; leave out those of {lora}, "
            f"or give the model {adapted.base}"
        )
    _check_base(adapted)
    return adapted.base, adapted.file, adapted
