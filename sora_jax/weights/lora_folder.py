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
_BASE = "base", "base_transformer_sha256", "base_part"
# How adapters of each part are given, in Python and as flags.
_GIVEN = {"dit": "lora", "dit_low": "lora_low"}


class Adapted(NamedTuple):
    """What the folder of a LoRA run says.

    Attributes:
      base: model folder that the adapters were trained on.
      sha256: of its transformer.
      part: which of two transformers that is; None where there is one.
      file: of the adapters.
      settings: of sampling, as model.json of a whole model has them.
    """

    base: pathlib.Path
    sha256: Any
    part: str | None
    file: pathlib.Path
    settings: dict[str, Any]

    @property
    def adapts(self) -> str:
        """The part of the model that the adapters are for."""
        return self.part or "dit"


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
    description = {"format": LORA_FORMAT, **dict(zip(_BASE, said)), **settings}
    with replaced(folder) as scratch:
        save_file(dict(tensors), scratch / FILE, metadata={"format": "pt"})
        (scratch / "model.json").write_text(json.dumps(description, indent=2) + "\n")


def find_adapted(folder: pathlib.Path) -> Adapted | None:
    """What the folder of a LoRA run says; None if it is any other folder.

    Raises:
      ValueError: it says that the adapters are for no transformer.
    """
    description = folder / "model.json"
    try:
        said = read_json(description)
    except (FileNotFoundError, ValueError):  # of no kind: whoever reads it as a model says so
        return None
    if said.pop("format", None) != LORA_FORMAT:
        return None
    base, sha256, part = (said.pop(name, None) for name in _BASE)
    if part is not None and part not in list(_GIVEN):
        raise ValueError(
            f"{description}: base_part is {part!r}, and must be one of {sorted(_GIVEN)}, the "
            "transformers of high and of low noise; write the folder again"
        )
    return Adapted(pathlib.Path(str(base)), sha256, part, folder / FILE, said)


def _check_base(adapted: Adapted) -> None:
    """Raises FileNotFoundError or ValueError if the model of adapters is gone or has changed."""
    base, part, description = adapted.base, adapted.adapts, adapted.file.parent / "model.json"
    remedy = (
        f"give the model and the adapters by themselves: MODEL with --{_GIVEN[part]}={adapted.file}"
    )
    try:
        load_description(base)
        found = transformer_sha256(base, part)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{description} has adapters for the model in {base}: {error}; if it was moved, "
            f"{remedy}"
        ) from error
    if found != adapted.sha256:
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
      FileNotFoundError, ValueError: the model of a LoRA run is gone or has changed, what
        `find_lora` raises, or there are adapters for a transformer that has them, or for the other
        of two.
    """
    given = {"dit": lora, "dit_low": lora_low}
    adapters = {part: find_lora(file) for part, file in given.items() if file is not None}
    for part, file in adapters.items():
        own = find_adapted(file.parent)
        if own is not None and own.part not in (None, part):
            raise ValueError(
                f"{file} has adapters for the other of two transformers: give them as "
                f"{_GIVEN[own.part]}, not as {_GIVEN[part]}"
            )
    adapted = find_adapted(folder)
    if adapted is None:
        return Taken(folder, adapters, None)
    if adapted.adapts in adapters:
        raise ValueError(
            f"{folder} is of a LoRA run and has adapters already; leave out those of "
            f"{adapters[adapted.adapts]}, or give the model {adapted.base}"
        )
    _check_base(adapted)
    return Taken(adapted.base, {**adapters, adapted.adapts: adapted.file}, adapted)
