"""Compiles the steps of a run ahead, on the machine and devices of the run.

`train.py` then finds them in WORKDIR/compiled. A program is found again only if it is the same to
the letter, so all is made as a run makes it, and nothing is trained.
"""

import logging
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax.buckets import Bucket
from sora_jax.sharding import batch_sharding, make_mesh
from sora_jax.training import resume, setup
from sora_jax.training.clips import option
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.placement import place_frozen, split_of
from sora_jax.training.state import jit_evaluate, jit_train_step, make_state

logger = logging.getLogger("sora_jax")


def warm(config: ConfigDict, workdir: str) -> None:
    """Fills WORKDIR/compiled with the first state, the train step and the scores of every bucket.

    Args:
      config: of `train.py`.
      workdir: of the run to come; it gets the run's tokenizer too.

    Raises:
      ValueError, OSError: as a run would.
    """
    workdir = setup.workdir_path(workdir)
    setup.keep_programs(workdir)
    mesh = make_mesh(dict(config.mesh))
    split = resume.kept_multiple(workdir, split_of(mesh))
    task, data = option(config, "task", setup.TASKS)(config, workdir, split)
    tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
    loop = setup.make_loop_config(config)
    init_key, run_key, evaluate_key = jax.random.split(jax.random.key(loop.seed), 3)
    with jax.set_mesh(mesh):
        state, shardings = make_state(task.init, tx, init_key, mesh, task.start)
        frozen = place_frozen(task.frozen, mesh)
        smooth = {"ema_decay": loop.ema_decay, "accumulate": loop.accumulate}
        train_step = jit_train_step(task, tx, mesh, shardings, **smooth)
        evaluate_step = jit_evaluate(task, mesh)
        evaluate_key = jax.random.fold_in(evaluate_key, 0)  # lies where those of the scores lie
        began = time.monotonic()
        for row in data.loader.report.rows:
            if not row.clips:
                continue
            batch = _batch(data.held_out[0], row.bucket, row.batch_size, mesh, task)
            train_step.lower(state, frozen, batch, run_key).compile()
            evaluate_step.lower(state.ema, frozen, batch, evaluate_key).compile()
            logger.info("compiled bucket %s, %.1f s", row.bucket, time.monotonic() - began)
    data.loader.close()


def _batch(
    example: dict[str, np.ndarray], bucket: Bucket, clips: int, mesh: Mesh, task: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """A global batch of a bucket, with the arrays of the example."""
    inside = {"frames": (bucket.frames, bucket.height, bucket.width, 3)}
    if "latents" in example:
        sizes = (bucket.frames, bucket.height, bucket.width)
        inside["latents"] = task.vae_config.latent_shape(*sizes)
    return {
        name: jax.ShapeDtypeStruct(
            (clips, *inside.get(name, x.shape[1:])),
            x.dtype,
            sharding=batch_sharding(mesh, x.ndim),
        )
        for name, x in example.items()
    }
