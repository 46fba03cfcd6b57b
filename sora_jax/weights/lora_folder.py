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
from sora_jax.weights.lora import FILE, find_lora
from sora_jax.weights.model_folder import LORA_FORMAT, load_description, replaced
from sora_jax.weights.tensor_files import read_json

# What model.json says of the model that adapters are for: its folder, its transformer's checksum,
# and the part which that is where there are two.
BASE = "base", "base_transformer_sha256", "base_part"
# How adapters of each part are given, in Python and as flags.
_GIVEN = {"dit": "lora", "dit_low": "lora_low"}


# Of folders whose checksum was that of the whole file.
_BEFORE = "sora_jax lora 1"


class Adapted(NamedTuple):
    """What the folder of a LoRA run says.

    Attributes:
      base: model folder that the adapters were trained on.
      file: of the adapters.
      settings: of sampling, as model.json of a whole model has them.
      part: of that model, which the adapters are for.
    """

    base: pathlib.Path
    file: pathlib.Path
    settings: dict[str, Any]
    part: str


def transformer_sha256(folder: pathlib.Path | str, part: str = "dit") -> str:
    """What tells the transformer of a model folder from others; of two, the one that `part` names.

    Raises:
      FileNotFoundError, ValueError: it is no model folder with a transformer.
    """
    file = pathlib.Path(folder) / f"{part}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; give a model folder with a transformer")
    return weights_sha256(file)


def save_lora(
    folder: pathlib.Path | str,
    tensors: Mapping[str, np.ndarray],
    base: pathlib.Path | str,
    sha256: str,
    settings: Mapping[str, Any],
    part: str | None = None,
) -> None:
    """Writes the folder; files of the same names are replaced one by one, whole.

    Args:
      folder: made if missing.
      tensors: of `lora_to_diffusers`.
      base: model folder that the adapters belong to.
      sha256: of its transformer.
      settings: JSON values of the model as a whole, see `save_model`.
      part: which of two transformers that is; None where there is one.
    """
    said = str(pathlib.Path(base).expanduser().resolve()), sha256, part
    description = {"format": LORA_FORMAT, **dict(zip(BASE, said)), **settings}
    with replaced(folder) as scratch:
        save_file(dict(tensors), scratch / FILE, metadata={"format": "pt"})
        (scratch / "model.json").write_text(json.dumps(description, indent=2) + "\n")


def find_adapted(folder: pathlib.Path) -> Adapted | None:
    """The contents of the folder of a LoRA run; None if it is any other folder.

    Raises:
      ValueError: it was written before the checksum was what it is now.
    """
    said = _read(folder)
    if said is None:
        return None
    description, part = folder / "model.json", said.get("base_part") or "dit"
    if part not in _GIVEN:
        raise ValueError(
            f"{description}: base_part is {part!r}, and must be one of {sorted(_GIVEN)}, the "
            "transformers of high and of low noise; write the folder again"
        )
    if said["format"] == _BEFORE:
        raise ValueError(
            f"{description} is of the format {_BEFORE!r}, which is no longer read: "
            f"{_by_themselves(folder / FILE, part)}"
        )
    return Adapted(pathlib.Path(str(said.get("base"))), folder / FILE, said, part)


def _read(folder: pathlib.Path) -> dict[str, Any] | None:
    """model.json of a LoRA run's folder, of any format; None if it is any other folder."""
    try:
        said = read_json(folder / "model.json")
    except (FileNotFoundError, ValueError):  # of no kind: whoever reads it as a model says so
        return None
    return said if said.get("format") in (LORA_FORMAT, _BEFORE) else None


def _by_themselves(file: pathlib.Path, part: str) -> str:
    return f"give the model and the adapters by themselves: MODEL with --{_GIVEN[part]}={file}"


def _check_base(adapted: Adapted) -> None:
    """Raises FileNotFoundError or ValueError if the model of adapters is gone or has changed."""
    base, part, description = adapted.base, adapted.part, adapted.file.parent / "model.json"
    remedy = _by_themselves(adapted.file, part)
    try:
        load_description(base)
        found = transformer_sha256(base, part)
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


class Taken(NamedTuple):
    """What a model is loaded from.

    Attributes:
      folder: of the model.
      adapters: files to add, by part.
      adapted: what the LoRA run says whose folder was given; None for a model's.
    """

    folder: pathlib.Path
    adapters: dict[str, pathlib.Path]
    adapted: Adapted | None


def take_adapters(
    folder: pathlib.Path, lora: pathlib.Path | str | None, lora_low: pathlib.Path | str | None
) -> Taken:
    """The model that is meant, and the adapters to add to it.

    Args:
      folder: of a model or of a LoRA run, which has its adapters.
      lora, lora_low: adapters that are asked for, see `find_lora`; those of the second of two
        transformers, for low noise, apart.

    Raises:
      FileNotFoundError, ValueError: the model of a LoRA run is gone or has changed, or its folder
        is too old, what `find_lora` raises, or there are adapters for a transformer that has them,
        or for the other of two.
    """
    given = {"dit": lora, "dit_low": lora_low}
    adapters = {part: find_lora(file) for part, file in given.items() if file is not None}
    for part, file in adapters.items():
        said = (_read(file.parent) or {}).get("base_part")
        if said in _GIVEN and said != part:
            raise ValueError(
                f"{file} has adapters for the other of two transformers: give them as "
                f"{_GIVEN[said]}, not as {_GIVEN[part]}"
            )
    adapted = find_adapted(folder)
    if adapted is None:
        return Taken(folder, adapters, None)
    if adapted.part in adapters:
        raise ValueError(
            f"{folder} is of a LoRA run and has adapters already; leave out those of "
            f"{adapters[adapted.part]}, or give the model {adapted.base}"
        )
    _check_base(adapted)
    return Taken(adapted.base, {**adapters, adapted.part: adapted.file}, adapted)
