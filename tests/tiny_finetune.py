"""Fine-tuning runs of `configs/finetune.py` in seconds, for a model folder of tiny networks."""

import math

import jax
import numpy as np

from configs import finetune
from sora_jax.sharding import make_mesh, tree_shardings
from sora_jax.training import setup
from sora_jax.training.loop import train
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.placement import BatchSplit, place, place_batch, place_frozen, split_of


def make_config(model, kind="lora", **changes):
    config = finetune.get_config(kind)
    config.init = str(model)
    config.dtype = "float32"
    config.data.folder, config.data.clips = "", 16
    config.data.buckets = ((5, 16, 32),)
    config.data.held_out_batches = 1
    config.optimizer.warmup_steps = 1
    config.optimizer.learning_rate = 1e-2
    config.lora.rank = 2 if kind == "lora" else 0
    config.loop.update({"steps": 4, "log_every": 1, "checkpoint_every": 2})
    config.update_from_flattened_dict(changes)
    return config


def make_task(config, workdir, split=None):
    workdir = setup.workdir_path(str(workdir))
    task, data = setup.make_dit_task(config, workdir, split or BatchSplit())
    data.loader.close()
    return task


def run(config, workdir, steps, devices=2):
    """The state after so many steps of a run whose schedule is that of the config."""
    mesh = make_mesh({"fsdp": devices}, jax.devices()[:devices])
    workdir = setup.workdir_path(str(workdir))
    task, data = setup.make_dit_task(config, workdir, split_of(mesh))
    tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
    whole, config.loop.steps = config.loop.steps, steps
    settings = setup.make_loop_config(config)
    held_out = data.held_out if steps == whole else []
    try:
        return train(task, tx, data.loader, held_out, settings, workdir, mesh)
    finally:
        data.loader.close()


def check_that_a_mesh_changes_no_gradient(task, drawn, batch, tolerance):
    """Of the parameters `drawn`; the tolerance is a share of each gradient's largest number."""
    boxed, found = jax.eval_shape(task.init, jax.random.key(0)), []
    for shape in ({"data": 1}, {"fsdp": 2, "context": 2, "tensor": 2}):
        mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
        params = place(drawn, tree_shardings(boxed, mesh))
        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(task.loss, has_aux=True))
            frozen = place_frozen(task.frozen, mesh)
            found.append(step(params, frozen, place_batch(batch, mesh), jax.random.key(3))[0])
    for one, split in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(split, one, rtol=0, atol=tolerance * np.abs(one).max())
