"""Writes a model elsewhere: python -m sora_jax.weights export --checkpoint=FOLDER --output=FOLDER

The result is a model folder with float16 parameters, half the size: what one hands on.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import flags

import sora_jax
from sora_jax import command
from sora_jax.weights.model_folder import Part, find_model, load_description, save_model


def export(source: str, output: str) -> None:
    """Copies a model with its parameters in float16; ~ in a path is the home folder.

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


def main(argv):
    if argv[1:] != ["export"]:
        command.fail(f"say what to do, 'export', not {argv[1:]}")
    try:
        export(flags.FLAGS.checkpoint, flags.FLAGS.output)
    except (ValueError, OSError) as error:
        command.fail(error)


def _define_flags() -> None:
    flags.DEFINE_string(
        "checkpoint", None, "Model folder, or work folder of a training run.", required=True
    )
    flags.DEFINE_string("output", None, "Folder to write.", required=True)


if __name__ == "__main__":
    _define_flags()  # not on import: other commands have flags of the same names
    command.run(main)
