"""The tasks' losses and gradients are the same on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.models.dit import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.sharding import make_mesh, tree_shardings
from sora_jax.training.dit_task import DiTTask, NoiseConfig
from sora_jax.training.loop import place_batch
from sora_jax.training.vae_task import VAETask

MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
VAE = VAEConfig(4, 4, (1, 2), 1, (True,), 4, patch=2)
DIT = DiTConfig(32, 2, 2, 64, 4, (1, 2, 2), 16, 16)
TEXT = TextConfig(16, 16, 2, 2, 8, 32)


@pytest.fixture(scope="module")
def dit():
    """The transformer with its text encoder, and a batch of latents and tokens."""
    noise, patterns = NoiseConfig(shift=2.0), {"none": 0.5, "first_frame": 0.5}
    task = DiTTask(DIT, TEXT, VAE, jnp.float32, noise, patterns, {}, "products", None, {})
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(8, 2, 4, 4, 4)).astype(np.float32),
        "tokens": rng.integers(0, 16, (8, 6), np.int32),
    }
    return task, batch


@pytest.fixture(scope="module")
def vae():
    task = VAETask(VAE, jnp.float32, kl_weight=0.1, gradient_weight=0.5, fps=8.0)
    batch = {"frames": np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8, 3), np.uint8)}
    return task, batch


def draw_params(task):
    """Parameters none of which is zero, as an init would leave some: all gradients then flow."""
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def draw(path, x):
        scale = np.prod(x.shape[-2:-1]) ** -0.5 if path[-1].key == "kernel" else 0.2
        gain = float("norm" in path[-1].key or "scale" in path[-1].key)
        return (gain + scale * rng.normal(size=x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def differentiate(task, batch, mesh):
    """Loss and gradients on a mesh."""
    shardings = tree_shardings(jax.eval_shape(task.init, jax.random.key(0)), mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(task.loss, has_aux=True),
            out_shardings=((None, None), shardings),
        )
        params = jax.device_put(draw_params(task), shardings)
        (loss, _), gradients = step(
            params, task.frozen, place_batch(batch, mesh), jax.random.key(3)
        )
    return float(loss), gradients


@pytest.fixture(scope="module")
def single(dit, vae):
    """By the name of the task, its loss and gradients on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return {"dit": differentiate(*dit, mesh), "vae": differentiate(*vae, mesh)}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["dit", "vae"])
def test_a_mesh_changes_nothing(request, single, name, mesh):
    loss, gradients = differentiate(*request.getfixturevalue(name), make_mesh(mesh))
    expected_loss, expected = single[name]
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected)
    ):
        scale = np.abs(wanted).max()
        assert scale > 0, path
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale, err_msg=str(path))
