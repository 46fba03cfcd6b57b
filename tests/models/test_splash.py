"""The kernels of TPUs, interpreted on CPU, against those of CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models import blockwise, splash
from sora_jax.models.attention import _heads_first

pytest.importorskip("tokamax", reason='the tpu extra is not installed: pip install -e ".[tpu]"')

# Queries, keys, heads, whether some keys are masked: whole blocks, and blocks that are filled up.
CASES = [(256, 256, 2, False), (300, 200, 1, False), (130, 257, 2, True)]


def make(n, m, heads, masked):
    rng = np.random.default_rng(0)
    q, grad = (rng.standard_normal((2, heads, n, 128)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((2, heads, m, 128)).astype(np.float32) for _ in range(2))
    mask = rng.random((2, m)) < 0.6 if masked else None
    return q, k, v, mask, grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_plain_path(case):
    q, k, v, mask, grad = make(*case)
    out, lse = jax.jit(_heads_first(blockwise.forward))(q, k, v, mask)
    found_out, found_lse = jax.jit(splash.forward)(q, k, v, mask)
    np.testing.assert_allclose(found_out, out, atol=2e-5)
    np.testing.assert_allclose(found_lse, lse, atol=2e-5)
    wanted = jax.jit(_heads_first(blockwise.backward))(q, k, v, mask, out, lse, grad)
    found = jax.jit(splash.backward)(q, k, v, mask, out, lse, grad)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("n", [1, 640, 641, 18900, 32760, 37800, 75600, 920_040])
def test_blocks_leave_little_over_and_are_lanes(n):
    size = splash._block(n)
    assert size % 128 == 0 and size <= 1024
    assert splash._padded(n) % size == 0 and splash._padded(n) - n < max(128, 0.02 * n)
    assert splash._padded(splash._padded(n)) == splash._padded(n)


def test_kernels_are_for_tpus_and_heads_of_whole_lanes(monkeypatch):
    assert not splash.is_for(jnp.zeros((1, 8, 2, 128)))  # this is a CPU
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    assert splash.is_for(jnp.zeros((1, 8, 2, 128))) and splash.is_for(jnp.zeros((1, 8, 1, 384)))
    assert not splash.is_for(jnp.zeros((1, 8, 2, 96)))


def test_the_backward_pass_takes_a_share_of_the_keys():
    """With the log-sum-exp and the output of all keys, shares of the gradients add up."""
    q, k, v, mask, grad = make(256, 256, 1, True)
    out, lse = jax.jit(_heads_first(blockwise.forward))(q, k, v, mask)
    wanted = jax.jit(_heads_first(blockwise.backward))(q, k, v, mask, out, lse, grad)
    backward = jax.jit(splash.backward)
    first, second = (
        backward(q, k[:, :, part], v[:, :, part], mask[:, part], out, lse, grad)
        for part in (np.s_[:128], np.s_[128:])
    )
    np.testing.assert_allclose(first[0] + second[0], wanted[0], atol=1e-5 * np.abs(wanted[0]).max())
    for i in (1, 2):
        found = np.concatenate([first[i], second[i]], axis=2)
        np.testing.assert_allclose(found, wanted[i], atol=1e-5 * np.abs(wanted[i]).max())
