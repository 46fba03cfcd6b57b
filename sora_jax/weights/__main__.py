"""Writes a model elsewhere, or open weights as a model:

python -m sora_jax.weights export --checkpoint=FOLDER --output=FOLDER [--lora=FILE]
    [--lora_low=FILE]
python -m sora_jax.weights export --to=diffusers --checkpoint=FOLDER --output=FOLDER [--lora=FILE]
    [--lora_low=FILE]
python -m sora_jax.weights import --source=FOLDER --output=FOLDER [--dtype=bfloat16]

What is exported is a model folder with float16 parameters, half the size: what one hands on. Or it
is the folder of a diffusers pipeline, in the dtype that the parameters have. What is imported is
an open Wan model or such a folder, see docs/open_weights.md.
"""

import dataclasses
import math
import os
import pathlib
import sys

import jax
import numpy as np
from absl import flags

import sora_jax
from sora_jax import command
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.loading import open_words
from sora_jax.weights.exporting import open_folder, write_pipeline
from sora_jax.weights.hub import fetch
from sora_jax.weights.importing import write_model
from sora_jax.weights.lora_folder import find_adapted
from sora_jax.weights.model_folder import Part, find_model, load_description, save_model
from sora_jax.weights.tensor_files import as_dtype
from sora_jax.weights.wan import is_open_model, open_model
from sora_jax.weights.wan_settings import OWN_SETTINGS


def export(
    source: str, output: str, *, lora: str | None = None, lora_low: str | None = None
) -> None:
    """Copies a model with its parameters in float16; ~ in a path is the home folder.

    Args:
      source, output: model folders; that of a LoRA run is written as one with its model.
      lora, lora_low: adapters to add to the transformers, see `sora_jax.load`.

    Raises:
      FileNotFoundError, ValueError: no model folder, a parameter that float16 cannot hold, or the
        output is the source, or the model that a LoRA run is for.
    """
    folder, output = find_model(source), _path(output)
    adapted = find_adapted(folder)
    base = folder if adapted is None else adapted.base
    for what, kept in (("the checkpoint itself", folder), ("the model of its adapters", base)):
        if output.resolve() == kept.resolve():
            raise ValueError(f"--output={output} is {what}; name another folder")
    described = load_description(base).get("parts")
    model = sora_jax.load(folder, lora=lora, lora_low=lora_low)
    parts = {name: Part(described[name], params) for name, params in model.params.items()}
    limit = float(np.finfo(np.float16).max)
    for name, params in model.params.items():
        for leaf in jax.tree.leaves(params):
            if np.max(np.abs(np.asarray(leaf))) > limit:
                raise ValueError(
                    f"{name} has parameters that are beyond float16's {limit:g}; hand on {source} "
                    "as it is"
                )
    settings = dataclasses.asdict(model.settings)
    save_model(output, parts, settings, tokenizer=model.tokenizer, dtype=np.float16)


def export_pipeline(
    source: str, output: str, *, lora: str | None = None, lora_low: str | None = None
) -> str:
    """Writes a model folder as the folder of a diffusers pipeline.

    Args:
      source: model folder, or work folder of a run; that of a LoRA run is written as one with its
        model.
      output: folder to make.
      lora, lora_low: adapters to add to the transformers, see `sora_jax.load`.

    Returns:
      How it is called there to sample as it does here, and what there is no field for.

    Raises:
      FileNotFoundError, ValueError: a file is missing or damaged, or diffusers has no such model;
        nothing is written then.
    """
    folder = find_model(source)
    model = open_folder(folder, lora, lora_low)
    described = folder / "model.json"
    _, settings = open_words(folder, model.tokenizer, model.settings, described, model.configs)
    latents = model.configs["vae"].latent_shape(settings.frames, *settings.size[::-1])
    dit = model.configs["dit"]
    shift = settings.shift_for(math.prod(dit.grid(latents[:3])))
    write_pipeline(model, _path(output), shift)
    sees = bool(dit.image_channels)
    lost = [name for name, value in _without_field(settings, sees=sees).items() if value]
    no_field = f"no field for {', '.join(lost)}" if lost else "fields for all of it"
    return (
        f"{_call(settings, sees=sees)} makes {settings.fps:g} frames a second with UniPC at a "
        f"shift of {shift:.4g}; diffusers has {no_field}"
    )


def _call(settings: ModelSettings, *, sees: bool) -> str:
    """How a pipeline is called to sample as the settings say."""
    (width, height), guidance = settings.size, settings.guidance
    arguments = {
        "negative_prompt": repr(settings.negative) if settings.negative else None,
        "width": width,
        "height": height,
        "num_frames": settings.frames,
        "num_inference_steps": settings.steps,
        "guidance_scale": f"{guidance.text:g}",
        "guidance_scale_2": None if guidance.text_low is None else f"{guidance.text_low:g}",
        "max_sequence_length": settings.text_length,
    }
    given = ", ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
    return f"pipeline({'IMAGE, ' if sees else ''}PROMPT, {given})"


def _without_field(settings: ModelSettings, *, sees: bool) -> dict[str, bool]:
    """Ways to sample that no file of diffusers can say, and whether the model has them."""
    guidance = settings.guidance
    return {
        "a limit of predictions": settings.latent_limit is not None,
        "a shift by size": settings.shift_tokens is not None,
        "levels between whole thousandths": settings.level_grid != 1000,
        "an interval of guidance": guidance.has_interval,
        "rescaled guidance": guidance.rescale > 0,
        "a level for each frame and so given frames": not sees,
    }


def import_open(source: str, output: str, *, dtype: str = "stored") -> None:
    """Writes an open Wan model as a model folder.

    Args:
      source: a folder, or OWNER/NAME@COMMIT of the Hugging Face Hub, see docs/open_weights.md.
      output: model folder.
      dtype: of the parameters on disk, see `sora_jax.load`.

    Raises:
      FileNotFoundError, ValueError: a file is missing, damaged or of another model; nothing is
        written then.
    """
    kept = as_dtype(dtype)
    if kept == np.int8:
        raise ValueError("--dtype=int8 is of no file: import as stored, and sample in int8")
    folder, output = _path(fetch(source)), _path(output)
    if not folder.is_dir() or (folder / "model.json").is_file() or not is_open_model(folder):
        raise ValueError(
            f"--source={source} is no folder of an open model: one with model_index.json, as "
            "diffusers has them, or with the config.json of Wan's own repositories"
        )
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output={output} is the source itself; name another folder")
    model = open_model(folder)
    open_words(folder, model.tokenizer, model.settings, folder / OWN_SETTINGS, model.configs)
    write_model(model, output, kept)


def _path(folder: str | pathlib.Path) -> pathlib.Path:
    """A folder as it was given, ~ being the home folder."""
    return pathlib.Path(os.path.expanduser(folder))


def run(argv: list[str]) -> None:
    values = flags.FLAGS
    if len(argv) > 2:
        command.fail(f"{argv[2]!r} belongs to no flag")
    try:
        if argv[1] == "import":
            import_open(values.source, values.output, dtype=values.dtype)
            return
        adapters = {"lora": values.lora, "lora_low": values.lora_low}
        if values.to == "diffusers":
            said = export_pipeline(values.checkpoint, values.output, **adapters)
            print(f"{values.output}: {said}")
        else:
            export(values.checkpoint, values.output, **adapters)
    except (ValueError, OSError) as error:
        command.fail(error)


def _define_flags(task: str) -> None:
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    if task == "import":
        flags.DEFINE_string(
            "source", None, "Folder of an open model, or OWNER/NAME@COMMIT.", required=True
        )
        flags.DEFINE_string("dtype", "stored", "float32, bfloat16, float16, or as the files have.")
        return
    flags.DEFINE_enum("to", "folder", ["folder", "diffusers"], "Whose layout to write.")
    flags.DEFINE_string(
        "checkpoint", None, "Model folder, or work folder of a training run.", required=True
    )
    flags.DEFINE_string("lora", None, "Adapters to add to the model's transformer.")
    flags.DEFINE_string("lora_low", None, "The same for the second of two, for low noise.")


if __name__ == "__main__":
    task = sys.argv[1] if len(sys.argv) > 1 else ""
    if task not in ("export", "import"):
        command.fail(f"say what to do first, 'export' or 'import', not {task!r}")
    _define_flags(task)  # not on import: other commands have flags of the same names
    command.run(run)
