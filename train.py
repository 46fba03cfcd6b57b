"""Trains a model, and writes it to WORKDIR/model.

python train.py --config=configs/NAME.py --workdir=FOLDER [--config.KEY=VALUE ...]

Starts, or resumes from the newest checkpoint in the work folder. On a TPU slice of several hosts
the same command runs on each of them; docs/pods.md has more.
"""

import functools
import logging
import os
import sys

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

import sora_jax
from sora_jax import command
from sora_jax.sharding import make_mesh
from sora_jax.training import clips, hosts, multihost, resume, setup
from sora_jax.training.claim import claimed
from sora_jax.training.loop import DivergedError, train
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.placement import split_of

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the model.")
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if there are several and no TPUs."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, likewise.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this one from 0, likewise.")
flags.mark_flags_as_required(["config", "workdir"])


def write_samples(config, folder):
    """A video for each of the config's prompts, beside the model that made it."""
    if not config.sampling.prompts:
        return
    try:
        model = sora_jax.load(folder)
        for i, prompt in enumerate(config.sampling.prompts):
            clip = model.sample(prompt, seed=i)
            sora_jax.save(clip if len(clip) > 1 else clip[0], folder / f"sample_{i}.mp4", model.fps)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        logging.getLogger("sora_jax").warning(
            "the model is written, and one device has no room to sample it: let config.sampling "
            "have a smaller size and fewer frames, or prompts=()"
        )


def run(config, workdir):
    workdir = setup.workdir_path(workdir)
    setup.keep_programs(workdir)
    make_task = clips.option(config, "task", setup.TASKS)
    logger = logging.getLogger("sora_jax")
    mesh = make_mesh(dict(config.mesh))
    hosts.check_shared(workdir)
    with claimed(workdir):
        split = resume.kept_multiple(workdir, split_of(mesh))
        task, data = make_task(config, workdir, split)
        resume.keep_multiple(workdir, split)
        if not (data.loader.report.unassigned or data.loader.report.empty):  # a warning already
            logger.info("buckets:\n%s", data.loader.report)
        tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
        loop = setup.make_loop_config(config)
        on_save = functools.partial(write_samples, config) if config.task == "dit" else None
        train(task, tx, data.loader, data.held_out, loop, workdir, mesh, on_save)
        data.loader.close()


def fail(error):
    """Ends the process with the error; one of several does not wait for the others to end too."""
    try:
        command.fail(error)
    except SystemExit as end:
        if not jax.distributed.is_initialized():
            raise
        print(end.code, file=sys.stderr)
        multihost.leave(1)


def main(argv):
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    handler = command.show_log()
    try:
        multihost.join(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value, os.environ)
        if jax.process_index() > 0:
            handler.setLevel(logging.WARNING)
            for each in (handler, absl_logging.get_absl_handler()):
                each.setFormatter(command.log_format(f"host {jax.process_index()}: %(message)s"))
        run(CONFIG.value, WORKDIR.value)
    except (ValueError, OSError, DivergedError) as error:
        fail(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            fail(
                f"out of memory: lower config.data.token_budget={CONFIG.value.data.token_budget}, "
                "or the sizes of the network"
            )
        if jax.process_count() == 1:
            raise
        fail(
            f"the hosts lost each other ({str(error).splitlines()[0]}): one of them ended, and its "
            "own log says why; start all of them again, to go on from the newest checkpoint"
        )


if __name__ == "__main__":
    command.run(main)
