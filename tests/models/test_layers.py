"""The shared parts against NumPy in float64: norms, sinusoids, patches, dense layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from sora_jax.models.layers import (
    Dense,
    LayerNorm,
    layer_norm,
    patchify,
    rms_norm,
    sinusoids,
    unpatchify,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_layer_norm(scale):
    x = scale * (draw(2, 3, 16) + 2)
    wide = x.astype(np.float64)
    deviation = np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    expected = (wide - wide.mean(-1, keepdims=True)) / deviation
    np.testing.assert_allclose(layer_norm(x), expected, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_layer_norm_gradient(scale, mean):
    x, grad = scale * (draw(2, 3, 16) + mean), draw(2, 3, 16, seed=1)
    wide = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    rate = 1 / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    # d y_i / d x_j = rate (delta_ij - 1 / D - y_i y_j / D), the matrix of all of them.
    y = wide * rate
    slopes = rate[..., None] * (np.eye(16) - 1 / 16 - y[..., :, None] * y[..., None, :] / 16)
    expected = np.einsum("...i,...ij->...j", grad, slopes)
    (result,) = jax.vjp(layer_norm, x)[1](jnp.asarray(grad))
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


def test_layer_norm_gradient_has_the_dtype_of_its_input():
    x = jnp.asarray(draw(4, 64), jnp.bfloat16)
    (result,) = jax.vjp(layer_norm, x)[1](jnp.ones((4, 64)))
    assert result.dtype == jnp.bfloat16


def test_layer_norm_with_scale_and_bias():
    x, scale, bias = draw(2, 3, 16) + 2, draw(16, seed=1), draw(16, seed=2)
    wide = x.astype(np.float64)
    deviation = np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = (wide - wide.mean(-1, keepdims=True)) / deviation * scale + bias
    result = LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm(scale):
    x, gain = scale * draw(2, 3, 16), draw(16, seed=1)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gain
    np.testing.assert_allclose(rms_norm(x, gain), expected, atol=1e-5)


def test_norms_compute_in_float32():
    x = jnp.asarray(draw(4, 64) + 30, jnp.bfloat16)
    for norm in (layer_norm, lambda x: rms_norm(x, jnp.ones(64))):
        assert norm(x).dtype == jnp.float32
        np.testing.assert_array_equal(norm(x), norm(x.astype(jnp.float32)))


def test_sinusoids_are_cosines_then_sines_of_a_thousand_levels():
    t = np.array([[0.0, 0.25], [0.7, 1.0]], np.float32)
    rates = 10_000.0 ** (-np.arange(8) / 8)
    angles = 1000 * t.astype(np.float64)[..., None] * rates
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    # Angles near 1000 are only known to 1e-4 in float32.
    np.testing.assert_allclose(sinusoids(t, 16), expected, atol=3e-4)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 3)])
def test_unpatchify_inverts_patchify(patch):
    x = draw(2, 4, 6, 12, 5)
    patches = patchify(x, patch)
    grid = tuple(size // step for size, step in zip((4, 6, 12), patch))
    assert patches.shape == (2, *grid, 5 * np.prod(patch))
    np.testing.assert_array_equal(unpatchify(patches, patch), x)


def test_a_patch_is_a_block_of_neighbours():
    x = draw(1, 4, 6, 6, 5)
    patches = patchify(x, (2, 3, 2))
    np.testing.assert_array_equal(patches[0, 1, 0, 2], x[0, 2:4, 0:3, 4:6].reshape(-1))


@pytest.mark.parametrize("zeros", [False, True])
def test_dense_names_its_axes_and_can_start_silent(zeros):
    layer = Dense(6, ("embed", "mlp"), name="layer", dtype=jnp.float32, zeros=zeros)
    boxed = layer.init(jax.random.key(0), jnp.ones((2, 4)))
    assert nn.get_partition_spec(boxed)["params"]["kernel"] == jax.P("embed", "mlp")
    assert nn.get_partition_spec(boxed)["params"]["bias"] == jax.P("mlp")
    assert bool(jnp.any(layer.apply(boxed, jnp.ones((2, 4))))) is not zeros


def test_dense_keeps_float32_parameters_and_computes_in_its_dtype():
    layer = Dense(6, (None, None), name="layer", dtype=jnp.bfloat16, bias=False)
    params = nn.unbox(layer.init(jax.random.key(0), jnp.ones((2, 4))))["params"]
    assert {name: x.dtype for name, x in params.items()} == {"kernel": jnp.float32}
    assert layer.apply({"params": params}, jnp.ones((2, 4))).dtype == jnp.bfloat16


def test_a_kernel_of_another_shape_is_refused():
    """It is named, as by flax, whose own look at the initializer is left out."""
    layer = Dense(4, ("embed", "mlp"), jnp.float32)
    params = {"kernel": jnp.zeros((3, 5)), "bias": jnp.zeros(4)}
    with pytest.raises(errors.ScopeParamShapeError, match=r'"kernel".*\(3, 4\).*\(3, 5\)'):
        layer.apply({"params": params}, jnp.zeros((2, 3)))
