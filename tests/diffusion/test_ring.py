"""Rings of latent frames seen through windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion.ring import over_windows, windows


@pytest.mark.parametrize("length", [3, 4, 5, 9])
@pytest.mark.parametrize("count", [2, 5, 10, 16, 17])
def test_every_frame_counts_once_and_never_from_a_windows_beginning(count, length):
    frames, weights = windows(count, length)
    np.testing.assert_allclose(np.bincount(frames.ravel(), weights.ravel()), 1, atol=1e-6)
    assert (np.diff(frames, axis=1) % count == 1).all(), "windows follow the ring"
    if count <= length:
        np.testing.assert_array_equal(frames, [range(count)])
    else:
        assert frames.shape[1] == length and not weights[:, 0].any()


def test_a_network_that_sees_a_frame_at_a_time_is_unchanged():
    keys = jax.random.split(jax.random.key(0), 3)
    x, t = jax.random.normal(keys[0], (2, 7, 2, 3, 4)), jax.random.uniform(keys[1], (2, 7))
    text = (jax.random.normal(keys[2], (3, 2, 5)),)

    def network(x, t, text):
        told = text[0].sum((0, 2)).reshape(-1, 1, 1, 1, 1)
        return jnp.tanh(x) * (1 + t[..., None, None, None]) + told

    for together in (True, False):
        result = over_windows(network, 4, together=together)(x, t, text)
        np.testing.assert_allclose(result, network(x, t, text), rtol=1e-5, atol=1e-5)


def test_turning_the_ring_by_a_windows_step_turns_the_result():
    x, t = jax.random.normal(jax.random.key(0), (1, 8, 1, 1, 2)), jnp.ones((1, 8))

    def network(x, t, text):
        return jnp.cumsum(x, axis=1)

    ring = over_windows(network, 4)
    turned = np.roll(ring(np.roll(x, 2, axis=1), t, ()), -2, axis=1)
    np.testing.assert_allclose(turned, ring(x, t, ()), atol=1e-5)
