"""Writes a model elsewhere, or open weights as a model:

python -m sora_jax.weights export --checkpoint=FOLDER --output=FOLDER
python -m sora_jax.weights import --source=FOLDER --output=FOLDER [--dtype=bfloat16]

What is exported is a model folder with float16 parameters, half the size: what one hands on. What
is imported is an open Wan model, see docs/open_weights.md.
"""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
from absl import flags

import sora_jax
from sora_jax import command
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.weights.hub import fetch
from sora_jax.weights.importing import write_model
from sora_jax.weights.model_folder import Part, find_model, load_description, save_model
from sora_jax.weights.parts import check_vocabulary
from sora_jax.weights.tensor_files import as_dtype
from sora_jax.weights.wan import is_open_model, open_model


def export(source: str, output: str) -> None:
    """Copies a model with its parameters in float16; ~ in a path is the home folder.

    Args:
      source, output: model folders.

    Raises:
      ValueError: a parameter that float16 cannot hold, or the output is the source.
    """
    folder, output = find_model(source), pathlib.Path(output).expanduser()
    model = sora_jax.load(folder)
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output={output} is the checkpoint itself; name another folder")
    parts = {}
    for name, settings in load_description(folder)["parts"].items():
        parts[name] = Part(settings, model.params[name])
    limit = float(np.finfo(np.float16).max)
    for name, params in model.params.items():
        for leaf in jax.tree.leaves(params):
            if not np.max(np.abs(np.asarray(leaf))) <= limit:  # neither does NaN pass
                raise ValueError(f"{name} has parameters that are NaN or beyond float16's {limit}")
    settings = dataclasses.asdict(model.settings)
    save_model(output, parts, settings, tokenizer=model.tokenizer, dtype=np.float16)


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
    folder, output = pathlib.Path(fetch(source)).expanduser(), pathlib.Path(output).expanduser()
    if not folder.is_dir() or (folder / "model.json").is_file() or not is_open_model(folder):
        raise ValueError(
            f"--source={source} is no folder of an open model: one with model_index.json, as "
            "diffusers has them, or with the config.json of Wan's own repositories"
        )
    if output.resolve() == folder.resolve():
        raise ValueError(f"--output={output} is the source itself; name another folder")
    model = open_model(folder)
    check_vocabulary(folder, Tokenizer.from_file(model.tokenizer).vocabulary, model.configs["text"])
    write_model(model, output, kept)


def run(argv: list[str]) -> None:
    values = flags.FLAGS
    if len(argv) > 2:
        command.fail(f"{argv[2]!r} belongs to no flag")
    try:
        if argv[1] == "import":
            import_open(values.source, values.output, dtype=values.dtype)
        else:
            export(values.checkpoint, values.output)
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
    flags.DEFINE_string(
        "checkpoint", None, "Model folder, or work folder of a training run.", required=True
    )


if __name__ == "__main__":
    task = sys.argv[1] if len(sys.argv) > 1 else ""
    if task not in ("export", "import"):
        command.fail(f"say what to do first, 'export' or 'import', not {task!r}")
    _define_flags(task)  # not on import: other commands have flags of the same names
    command.run(run)
