"""Attention: its values and gradients in every form, and the memory it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.models import attention
from sora_jax.models.attention import attend


def make(b, n, m, heads, d, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    q, g = (rng.standard_normal((b, n, heads, d)).astype(dtype) for _ in range(2))
    k, v = (rng.standard_normal((b, m, heads, d)).astype(dtype) for _ in range(2))
    return q, k, v, g


def reference(q, k, v, g, mask=None):
    """Output and gradients of q, k, v in float64."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    scores = np.einsum("bnkd,bmkd->bknm", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask[:, None, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bnkd,bmkd->bknm", g, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    return (
        np.einsum("bknm,bmkd->bnkd", p, v),
        np.einsum("bknm,bmkd->bnkd", ds, k),
        np.einsum("bknm,bnkd->bmkd", ds, q),
        np.einsum("bknm,bnkd->bmkd", p, g),
    )


def run(q, k, v, g, mask=None):
    @jax.jit
    def both(q, k, v, g):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask=mask), q, k, v)
        return out, *pull(g)

    return both(q, k, v, g)


SIZES = {
    "plain": (2, 5, 7, 3, 8),
    "long, blocks divide": (1, 1024, 1024, 2, 32),
    "long, blocks do not divide": (1, 1025, 517, 3, 16),
    "many short clips, heads together": (24, 100, 100, 5, 16),
    "short clips, heads in uneven groups": (3, 300, 290, 5, 16),
    "cross-attention": (2, 1500, 77, 6, 32),
    "cross-attention, its queries in blocks": (1, 2500, 500, 2, 16),
    "one query": (1, 1, 2**19 + 3, 2, 4),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_values_and_gradients_match_float64(size):
    arrays = make(*size)
    for got, want in zip(run(*arrays), reference(*arrays), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("size", [(2, 5, 7, 3, 8), (2, 1025, 700, 2, 16)])
def test_masked_keys_have_no_say_and_no_gradient(size):
    q, k, v, g = make(*size)
    mask = np.random.default_rng(1).random(k.shape[:2]) < 0.5
    mask[0] = False
    mask[0, -1] = True  # whole blocks without a key
    got = run(q, k, v, g, mask)
    for a, b in zip(got, reference(q, k, v, g, mask), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))
    assert not np.asarray(got[2])[~mask].any() and not np.asarray(got[3])[~mask].any()
    np.testing.assert_array_equal(
        run(q, k, np.where(mask[..., None, None], v, 9), g, mask)[0], got[0]
    )


def test_large_scores_neither_overflow_nor_vanish():
    q, k, v, g = make(1, 1200, 900, 1, 16)
    q, k = 100 * q, np.abs(k)
    for got, want in zip(run(q, k, v, g), reference(q, k, v, g), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-3 * max(1.0, np.abs(want).max()))
    low = run(-100 * np.abs(q), k, v, g)
    assert all(np.isfinite(x).all() for x in low)


def test_bfloat16_keeps_the_softmax_in_float32():
    arrays = [x.astype(jnp.bfloat16) for x in make(2, 900, 800, 2, 32)]
    for got, want in zip(run(*arrays), reference(*arrays), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            got.astype(np.float32), want, atol=6e-3 * max(1.0, np.abs(want).max())
        )


def test_no_matrix_of_all_scores_in_memory():
    shape = jax.ShapeDtypeStruct((2, 2048, 6, 64), jnp.float32)

    def loss(q, k, v):
        return attend(q, k, v).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    one_head = 4 * 2048 * 2048
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * one_head  # of 12 heads
    assert "2048,2048" not in compiled.as_text()


def test_scanned_and_rematerialised_layers_give_the_same_gradients():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            q, k, v = jnp.split(nn.DenseGeneral((2, 48))(x), 3, axis=-1)
            return x + attend(q, k, v).reshape(x.shape), None

    def stack(body):
        return nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()

    x = jnp.asarray(make(1, 1030, 1, 1, 32)[0][:, :, 0])
    params = stack(Layer).init(jax.random.key(0), x)
    grads = [
        jax.jit(jax.grad(lambda p, m=m: (m.apply(p, x)[0] ** 2).sum()))(params)
        for m in (stack(Layer), stack(nn.remat(Layer)))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), *grads)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[0]))


def test_other_backends_lower_without_the_loop_over_clips():
    shape = jax.ShapeDtypeStruct((8, 1024, 6, 64), jnp.float32)
    lowered = jax.jit(attend).trace(shape, shape, shape).lower(lowering_platforms=("tpu",))
    assert "8x6x1024x512" in lowered.as_text()


def test_shapes_that_do_not_fit_are_named():
    q, k, v, _ = make(2, 5, 7, 3, 8)
    with pytest.raises(ValueError, match=r"keys \(2, 7, 3, 8\).*do not fit"):
        attend(q, k, v[:, :6])
    with pytest.raises(ValueError, match="do not fit"):
        attend(q[..., :4], k, v)
    with pytest.raises(ValueError, match="do not fit"):
        attend(q[:1], k, v)
    with pytest.raises(ValueError, match=r"mask \(2, 5\) must be \[B, M\]"):
        attend(q, k, v, mask=np.ones((2, 5), bool))


def test_every_form_is_reached_by_the_sizes_above():
    counts = {name: s[0] * s[3] * s[1] * s[2] for name, s in SIZES.items()}
    assert counts.pop("plain") <= attention._PLAIN_SCORES < min(counts.values())
