"""Writes a model elsewhere: python -m sora_jax.weights export --checkpoint=FOLDER --output=FOLDER

The result is a model folder with float16 parameters, half the size: what one hands on. With
--average_with=FOLDER and --share=0.6 its parameters are 0.6 of the checkpoint's and 0.4 of those of
the model it was trained on from, which keeps more of what that one knew (arXiv 2109.01903).
"""

import dataclasses
import pathlib

import jax
import numpy as np
from absl import flags

import sora_jax
from sora_jax import command
from sora_jax.weights.model_folder import Part, find_model, load_description, save_model


def export(
    source: str, output: str, *, average_with: str | None = None, share: float = 0.5
) -> None:
    """Copies a model with its parameters in float16; ~ in a path is the home folder.

    Args:
      source, output: model folders.
      average_with: a model of the same sizes, whose parameters are mixed in.
      share: of the source in the mixture.

    Raises:
      ValueError: a parameter that float16 cannot hold, the output is the source, models of
        different sizes, or a share outside [0, 1].
    """
    folder, output = find_model(source), pathlib.Path(output).expanduser()
    model = sora_jax.load(folder)
    if average_with is not None:
        model = _average(model, sora_jax.load(average_with), share)
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


def _average(model: sora_jax.Model, other: sora_jax.Model, share: float) -> sora_jax.Model:
    """The first model, its transformer and text encoder mixed with the other's."""
    if not 0 <= share <= 1:
        raise ValueError(f"--share={share} must lie in 0 (all of the other) to 1 (none of it)")
    same = (
        (one.vae_config, one.dit_config, one.text_config, one.tokenizer.vocabulary)
        for one in (model, other)
    )
    if len(set(same)) > 1:
        raise ValueError("--average_with is a model of other sizes: give one it was trained from")
    mixed = {
        part: jax.tree.map(
            lambda a, b: share * a + (1 - share) * b, model.params[part], other.params[part]
        )
        for part in ("dit", "text")
    }
    return dataclasses.replace(model, params={**model.params, **mixed})


def main(argv):
    if argv[1:] != ["export"]:
        command.fail(f"say what to do, 'export', not {argv[1:]}")
    try:
        values = flags.FLAGS
        export(
            values.checkpoint,
            values.output,
            average_with=values.average_with,
            share=values.share,
        )
    except (ValueError, OSError) as error:
        command.fail(error)


def _define_flags() -> None:
    flags.DEFINE_string(
        "checkpoint", None, "Model folder, or work folder of a training run.", required=True
    )
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    flags.DEFINE_string("average_with", None, "Model whose parameters are mixed in.")
    flags.DEFINE_float("share", 0.5, "Share of the checkpoint in that mixture.")


if __name__ == "__main__":
    _define_flags()  # not on import: other commands have flags of the same names
    command.run(main)
