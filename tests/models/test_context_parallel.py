"""Attention over the devices of a mesh: the same values and gradients, by the right exchanges."""

import jax
import numpy as np
import pytest

from sora_jax.models.attention import attend
from sora_jax.sharding import make_mesh

SHAPE = (2, 3, 256, 4, 16)  # clips, frames, places, heads, head width

# Mesh, whether heads are exchanged, whether keys go around a ring.
MESHES = [
    ({"data": 2, "context": 4}, True, False),
    ({"context": 8}, True, True),
    ({"tensor": 4, "context": 2}, False, True),
    ({"tensor": 2, "context": 4}, True, True),
    ({"fsdp": 2, "context": 2, "tensor": 2}, True, False),
    ({"fsdp": 4, "tensor": 2}, False, False),  # more ways than clips: replicated
]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(4))
    mask = rng.random(SHAPE[:3]) < 0.7
    mask[0, :, 32:64] = False  # all keys of a device
    return q, k, v, g, mask


def both(q, k, v, g, mask):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask=mask), q, k, v)
    return out, *pull(g)


def assert_close(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("mesh", "exchanges", "turns"), MESHES, ids=lambda x: str(x))
def test_a_mesh_changes_nothing(arrays, mesh, exchanges, turns):
    wanted = jax.jit(both)(*arrays)
    with jax.set_mesh(make_mesh(mesh)):
        compiled = jax.jit(both).lower(*arrays).compile()
    program = compiled.as_text()
    assert (" all-to-all(" in program, " collective-permute(" in program) == (exchanges, turns)
    assert_close(compiled(*arrays), wanted)


def test_keys_of_the_text_stay_where_they_are(arrays):
    q, _, _, g, _ = arrays
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((2, 200, 4, 16)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, 200)) < 0.7
    wanted = jax.jit(both)(q, k, v, g, mask)
    with jax.set_mesh(make_mesh({"data": 2, "context": 4})):
        forward = jax.jit(attend).lower(q, k, v, mask=mask).compile().as_text()
        found = jax.jit(both)(q, k, v, g, mask)
    assert not any(f" {name}(" in forward for name in ("all-gather", "all-to-all"))
    assert_close(found, wanted)
