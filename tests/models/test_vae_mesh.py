"""The VAE on a mesh that splits clips and rows: the same function, and only borders travel."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_model import draw_params

from sora_jax.models import attention, conv
from sora_jax.models.vae import VAE, VIDEO, VAEConfig, init_vae
from sora_jax.sharding import make_mesh, spec

CONFIG = VAEConfig(4, 4, (1, 1), 1, (True,), 3, patch=2, shortcuts=True)
FRAMES, HEIGHT, WIDTH = 5, 32, 16
_COLLECTIVE = re.compile(
    r"= \(?\w+\[([0-9,]+)\].* (all-gather|all-to-all|collective-permute)(?:-start)?\("
)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, FRAMES, HEIGHT, WIDTH, 3))
    noise = rng.normal(size=(2, *CONFIG.latent_shape(FRAMES, HEIGHT, WIDTH)))
    return np.float32(x), np.float32(noise)


def loss(params, x, noise):
    y, mean, logvar = VAE(CONFIG).apply({"params": params}, x, noise)
    return jnp.mean((y - x) ** 2) + jnp.mean(mean**2 + logvar), (y, mean, logvar)


run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def test_rows_split_over_devices_give_the_same_and_only_borders_travel(monkeypatch, arrays):
    """With the finest level in the form of large frames, and attention that of many places."""
    monkeypatch.setattr(conv, "LARGE_FRAME", HEIGHT * WIDTH // 4)
    monkeypatch.setattr(attention, "_PLAIN_SCORES", 0)
    params = draw_params(init_vae, CONFIG)
    alone = jax.jit(run)(params, *arrays)
    mesh = make_mesh({"data": 2, "context": 4})
    with jax.set_mesh(mesh):
        video, everywhere = NamedSharding(mesh, spec(VIDEO)), NamedSharding(mesh, spec(()))
        split = jax.device_put((params, *arrays), (everywhere, video, video))
        program = jax.jit(run).lower(*split).compile()
        together = program(*split)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))
    for output in together[0][1]:
        assert output.sharding.is_equivalent_to(video, output.ndim)
    found = [
        (kind, [int(n) for n in shape.split(",")])
        for shape, kind in _COLLECTIVE.findall(program.as_text())
    ]
    assert {kind for kind, _ in found} == {"collective-permute"}
    # One row of the frames that a device has, or keys and values: [places, 1, channels] of each.
    places = HEIGHT * WIDTH // (CONFIG.spatial_stride**2 * 4)
    for _, shape in found:
        assert shape[1] == 1 or places in shape, shape
