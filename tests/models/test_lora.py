"""Adapters: silent at first, then exactly a change of the weights, and all that has a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_lora import LORA, draw_adapters, merged
from tiny_model import DIT_CONFIG, draw_params

from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.lora import TARGETS, LoRAConfig, init_lora, scaled


@pytest.fixture(scope="module")
def base():
    return draw_params(init_dit, DIT_CONFIG)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    shapes = (2, 3, 4, 6, 4), (2, 3), (2, 5, 16)
    x, t, text = (rng.uniform(size=shape).astype(np.float32) for shape in shapes)
    return x, t, text


def test_fresh_adapters_change_nothing_and_cover_what_they_should(base, inputs):
    adapters = nn.unbox(init_lora(DIT_CONFIG, LORA, jax.random.key(0)))
    plain = jax.jit(lambda *inputs: DiT(DIT_CONFIG).apply({"params": base}, *inputs))
    tuned = jax.jit(
        lambda *inputs: DiT(DIT_CONFIG).apply({"params": base, "lora": adapters}, *inputs)
    )
    np.testing.assert_array_equal(plain(*inputs), tuned(*inputs))
    sizes = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters)}
    assert sizes == {"a", "b"} and len(jax.tree.leaves(adapters)) == 2 * 10
    assert np.abs(adapters["blocks"]["mlp_in"]["a"]).max() > 0
    one = LoRAConfig(3, 3.0, ("mlp",))
    only = nn.unbox(init_lora(DIT_CONFIG, one, jax.random.key(0)))
    assert set(only) == {"blocks"} and set(only["blocks"]) == {"mlp_in", "mlp_out"}


def test_output_and_gradients_are_those_of_changed_weights(base, inputs):
    """Also where blocks are computed again in the backward pass."""
    adapters = draw_adapters()

    def inside(adapters):
        variables = {"params": base, "lora": scaled(adapters, LORA.scale)}
        return DiT(DIT_CONFIG, remat="results").apply(variables, *inputs)

    def outside(adapters):
        params = merged(base, adapters, LORA.scale)
        return DiT(DIT_CONFIG).apply({"params": params}, *inputs)

    def differentiate(network):
        def loss(adapters):
            y = network(adapters)
            return jnp.sum(y**2), y

        return jax.jit(jax.grad(loss, has_aux=True))(adapters)

    (found, y), (expected, wanted) = differentiate(inside), differentiate(outside)
    np.testing.assert_allclose(y, wanted, atol=2e-5)
    plain = jax.jit(DiT(DIT_CONFIG).apply)({"params": base}, *inputs)
    assert np.abs(plain - wanted).max() > 0.1
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        assert np.abs(other).max() > 0, path
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0, "alpha": 1.0}, "config.lora.rank=0 must be a whole number"),
        ({"rank": 2.0, "alpha": 1.0}, "config.lora.rank=2.0"),
        ({"rank": 2, "alpha": 0.0}, "config.lora.alpha=0.0 must be positive"),
        ({"rank": 2, "alpha": 2.0, "targets": ("head",)}, "config.lora.targets=.*'mlp'"),
        ({"rank": 2, "alpha": 2.0, "targets": ()}, "one or more of"),
    ],
)
def test_adapters_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**settings)


def test_a_rank_beyond_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"rank=33 is more than the 32 x 32 matrix of .*at most"):
        init_lora(DIT_CONFIG, LoRAConfig(33, 33.0), jax.random.key(0))
    assert set(TARGETS) == set(LORA.targets)
