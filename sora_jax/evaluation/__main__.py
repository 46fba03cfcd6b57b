"""Scores a model: python -m sora_jax.evaluation shapes [--checkpoint=FOLDER] [--output=FOLDER]"""

import logging
import pathlib

from absl import flags

import sora_jax
from sora_jax import command
from sora_jax.evaluation.worlds import ATTRIBUTES, score_shapes

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder; the shipped one if left out.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the scores and pictures.")
COMBINATIONS = flags.DEFINE_integer("combinations", 100, "Held-out combinations of each kind.")
SEEDS = flags.DEFINE_integer("seeds", 2, "Samples of each combination.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver; the model's if left out.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance; the model's if left out.")


def shapes():
    """Prints the table of `score_shapes`."""
    scores = score_shapes(
        sora_jax.load(CHECKPOINT.value),
        combinations=COMBINATIONS.value,
        seeds=SEEDS.value,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        folder=pathlib.Path(OUTPUT.value) if OUTPUT.value else None,
    )
    print("".join(f"{name:>11}" for name in ("", *ATTRIBUTES)))
    for kind, row in scores.items():
        print(f"{kind:>11}" + "".join(f"{100 * row[name]:>10.1f}%" for name in ATTRIBUTES))


SUITES = {"shapes": shapes}


def main(argv):
    if len(argv) != 2 or argv[1] not in SUITES:
        command.fail(f"say what to score, one of {sorted(SUITES)}, not {argv[1:]}")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("sora_jax").setLevel(logging.INFO)
    try:
        SUITES[argv[1]]()
    except (ValueError, OSError) as error:
        command.fail(error)


if __name__ == "__main__":
    command.run(main)
