"""Trains a model, and writes it to WORKDIR/model.

python train.py --config=configs/NAME.py --workdir=FOLDER [--config.KEY=VALUE ...]

Starts, or resumes from the newest checkpoint in the work folder.
"""

import functools
import logging
import os

import jax
from absl import flags
from ml_collections import config_flags

import sora_jax
from sora_jax import command
from sora_jax.sharding import make_mesh
from sora_jax.training import clips, setup
from sora_jax.training.loop import DivergedError, train
from sora_jax.training.optimizer import make_optimizer

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the model.")
flags.mark_flags_as_required(["config", "workdir"])

TASKS = {
    "vae": lambda config, workdir: setup.make_vae_task(config),
    "dit": setup.make_dit_task,
}


def write_samples(config, folder):
    """A video for each of the config's prompts, beside the model that made it."""
    model = sora_jax.load(folder)
    for i, prompt in enumerate(config.sampling.prompts):
        clip = model.sample(prompt, seed=i)
        sora_jax.save(clip if len(clip) > 1 else clip[0], folder / f"sample_{i}.mp4", model.fps)


def run(config, workdir):
    workdir = setup.workdir_path(workdir)
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(workdir / "compiled"))
    make_task = clips.option(config, "task", TASKS)
    logger = logging.getLogger("sora_jax")
    mesh = make_mesh(dict(config.mesh))
    task, data = make_task(config, workdir)
    if not (data.loader.report.unassigned or data.loader.report.empty):  # a warning already
        logger.info("buckets:\n%s", data.loader.report)
    tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
    loop = setup.make_loop_config(config)
    on_save = functools.partial(write_samples, config) if config.task == "dit" else None
    train(task, tx, data.loader, data.held_out, loop, workdir, mesh, on_save)
    data.loader.close()


def main(argv):
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    logger = logging.getLogger("sora_jax")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    try:
        run(CONFIG.value, WORKDIR.value)
    except (ValueError, OSError, DivergedError) as error:
        command.fail(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        command.fail(
            f"out of memory: lower config.data.token_budget={CONFIG.value.data.token_budget}, or "
            "the sizes of the network"
        )


if __name__ == "__main__":
    command.run(main)
