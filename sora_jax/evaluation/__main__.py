"""Scores a model.

python -m sora_jax.evaluation shapes [--checkpoint=FOLDER] [--output=FOLDER] [--dtype=bfloat16]
    how often prompts of the rendered world come out right
python -m sora_jax.evaluation edits [--checkpoint=FOLDER] [--output=FOLDER] [--clips=50]
    [--dataset=FOLDER] [--tasks=NAME,...] [--dtype=bfloat16]
    how well it animates, extends, connects, loops and edits clips of that world, or of a dataset
python -m sora_jax.evaluation reconstruction --config=configs/NAME_vae.py [--checkpoint=FOLDER]
    PSNR, SSIM and flicker of a VAE on the held-out clips of a config
"""

import logging
import pathlib

from absl import flags
from ml_collections import config_flags

import sora_jax
from sora_jax import command
from sora_jax.data.clips import ClipDataset
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.evaluation.editing import score_edits
from sora_jax.evaluation.examples import read_examples, render_examples
from sora_jax.evaluation.vae_score import score_vae
from sora_jax.evaluation.worlds import ATTRIBUTES, score_shapes
from sora_jax.loading import PRETRAINED
from sora_jax.training.clips import make_source, read_buckets
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import load_vae

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Model folder, or work folder of a run; the shipped one if left out."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "int8"],
    "Of the parameters in memory, with `shapes` and `edits`.",
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the scores and pictures.")
COMBINATIONS = flags.DEFINE_integer(
    "combinations", 100, "Held-out combinations of each kind.", lower_bound=1
)
SEEDS = flags.DEFINE_integer("seeds", 2, "Samples of each combination.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps of the solver; the model's if left out.", lower_bound=1
)
SOLVER = flags.DEFINE_enum("solver", None, sorted(SOLVERS), "The model's if left out.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance; the model's if left out.")
CLIPS = flags.DEFINE_integer(
    "clips", None, "Clips to reconstruct (64 if left out), or to edit (50).", lower_bound=1
)
TASKS = flags.DEFINE_list("tasks", None, "Tasks of `edits`; all if left out.")
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "Dataset whose held-out clips `edits` takes; those of the rendered world if left out.",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config of a VAE's run: its clips and buckets.", lock_config=True
)


def shapes(folder):
    """Prints the table of `score_shapes`."""
    scores = score_shapes(
        sora_jax.load(CHECKPOINT.value, dtype=DTYPE.value),
        combinations=COMBINATIONS.value,
        seeds=SEEDS.value,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        solver=SOLVER.value,
        folder=folder,
    )
    print("".join(f"{name:>11}" for name in ("", *ATTRIBUTES)))
    for kind, row in scores.items():
        print(f"{kind:>11}" + "".join(f"{100 * row[name]:>10.1f}%" for name in ATTRIBUTES))


def reconstruction(folder):
    """Prints the table of `score_vae`."""
    if CONFIG.value is None:
        raise ValueError("--config is missing: give the config of the VAE's run, for its clips")
    data = CONFIG.value.data
    buckets = read_buckets(data)
    source = make_source(data, buckets, held_out=True)
    vae = load_vae(find_model(CHECKPOINT.value or PRETRAINED))
    scores = score_vae(vae, source, buckets, clips=CLIPS.value or 64, folder=folder)
    print(f"{'':>14}{'clips':>7}{'PSNR':>9}{'SSIM':>8}{'change':>9}")
    for name, row in scores.items():
        change = f"{row['change']:>9.2f}" if "change" in row else ""
        print(f"{name:>14}{row['clips']:>7}{row['psnr']:>9.2f}{row['ssim']:>8.3f}{change}")


def edits(folder):
    """Prints the rows of `score_edits`."""
    chosen = {} if TASKS.value is None else {"tasks": TASKS.value}
    model, clips = sora_jax.load(CHECKPOINT.value, dtype=DTYPE.value), CLIPS.value or 50
    if DATASET.value is None:
        examples = render_examples(clips, model.settings.frames)
    else:
        source = ClipDataset(DATASET.value, "validation", fps=model.fps)
        examples = read_examples(source, model, clips)
    scores = score_edits(
        model,
        examples,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        solver=SOLVER.value,
        folder=folder,
        **chosen,
    )
    for name, row in scores.items():
        print(f"{name:>14}  " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))


SUITES = {"shapes": shapes, "edits": edits, "reconstruction": reconstruction}


def main(argv):
    if len(argv) != 2 or argv[1] not in SUITES:
        command.fail(f"say what to score, one of {sorted(SUITES)}, not {argv[1:]}")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("sora_jax").setLevel(logging.INFO)
    try:
        SUITES[argv[1]](pathlib.Path(OUTPUT.value) if OUTPUT.value else None)
    except (ValueError, OSError) as error:
        command.fail(error)


if __name__ == "__main__":
    command.run(main)
