"""The text encoder against a slow reference, and what padding, depth and dtype may not change."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from sora_jax.models.text import TextConfig, TextEncoder, position_buckets
from sora_jax.sharding import batch_sharding, make_mesh, spec

CONFIG = TextConfig(vocabulary=40, width=12, layers=2, heads=3, head_width=5, mlp_width=20)
TOKENS = np.array([[5, 9, 3, 7, 1], [8, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.int32)


@pytest.fixture(scope="module")
def params():
    """Random parameters, the norms' scales away from one."""
    params = nn.unbox(jax.jit(TextEncoder(CONFIG).init)(jax.random.key(0), TOKENS))["params"]
    rng = np.random.default_rng(0)
    for norm in (params["norm"], params["blocks"]["attention_norm"], params["blocks"]["mlp_norm"]):
        norm["scale"] = jnp.asarray(rng.uniform(0.5, 1.5, norm["scale"].shape), jnp.float32)
    bias = params["blocks"]["position_bias"]
    params["blocks"]["position_bias"] = jnp.asarray(rng.normal(size=bias.shape), jnp.float32)
    return params


@jax.jit
def encode(params, tokens):
    return TextEncoder(CONFIG).apply({"params": params}, tokens)


def reference_bucket(offset: int, buckets: int, max_distance: int) -> int:
    """The bucket of key minus query, by counting the edges that the distance has passed."""
    half = buckets // 2
    exact = half // 2
    bucket = 0
    for edge in range(1, half):
        if edge <= exact:
            start = edge
        else:
            start = exact * (max_distance / exact) ** ((edge - exact) / (half - exact))
        bucket += abs(offset) >= start - 1e-6
    return bucket + (half if offset > 0 else 0)


def reference(params, tokens, config):
    """One sequence at a time, one head at a time, only the tokens that are there; float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return np.array([row / math.sqrt((row**2).mean() + 1e-6) * scale for row in x])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    out = np.zeros((*tokens.shape, config.width))
    for row, sequence in enumerate(tokens):
        sequence = sequence[sequence != 0]
        n = len(sequence)
        x = params["embedding"][sequence]
        for layer in range(config.layers):
            p = jax.tree.map(lambda leaf, i=layer: leaf[i], params["blocks"])
            y = norm(x, p["attention_norm"]["scale"])
            mixed = np.zeros((n, config.heads * config.head_width))
            for head in range(config.heads):
                part = slice(head * config.head_width, (head + 1) * config.head_width)
                q, k, v = (y @ p[name]["kernel"][:, part] for name in ("query", "key", "value"))
                for i in range(n):
                    logits = np.zeros(n)
                    for j in range(n):
                        bucket = reference_bucket(j - i, config.buckets, config.max_distance)
                        logits[j] = q[i] @ k[j] + p["position_bias"][bucket, head]
                    weights = np.exp(logits - logits.max())
                    mixed[i, part] = weights / weights.sum() @ v
            x = x + mixed @ p["out"]["kernel"]
            y = norm(x, p["mlp_norm"]["scale"])
            y = gelu(y @ p["gate"]["kernel"]) * (y @ p["up"]["kernel"])
            x = x + y @ p["down"]["kernel"]
        out[row, :n] = norm(x, params["norm"]["scale"])
    return out


def test_equals_the_slow_reference(params):
    np.testing.assert_allclose(encode(params, TOKENS), reference(params, TOKENS, CONFIG), atol=2e-5)


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 20), (4, 3)])
def test_position_buckets_at_every_distance(buckets, max_distance):
    length = 150
    table = position_buckets(length, buckets, max_distance)
    for offset in range(-length + 1, length):
        want = reference_bucket(offset, buckets, max_distance)
        np.testing.assert_array_equal(np.diagonal(table, offset), want, err_msg=f"at {offset}")
    assert set(table.ravel()) == set(range(buckets)) - {buckets // 2}


def test_padding_changes_nothing_and_is_zero(params):
    short = encode(params, np.array([[8, 4, 1]], np.int32))
    long = encode(params, np.array([[8, 4, 1, 0, 0, 0, 0]], np.int32))
    np.testing.assert_allclose(long[:, :3], short, atol=1e-6)
    assert not np.asarray(long[:, 3:]).any()


def test_nothing_but_padding_is_zero_and_has_finite_gradients(params):
    def loss(params):
        out = TextEncoder(CONFIG).apply({"params": params}, jnp.array([[0, 0], [5, 1]]))
        return jnp.sum(out**2), out[0]

    grads, empty = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_array_equal(empty, np.zeros((2, CONFIG.width)))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_order_of_words_matters(params):
    one, other = encode(params, np.array([[5, 9, 3, 7, 1], [3, 9, 5, 7, 1], TOKENS[2]]))[:2]
    assert np.abs(one[4] - other[4]).max() > 1e-3


def test_every_layer_has_its_own_position_bias(params):
    base = encode(params, TOKENS)
    for layer in range(CONFIG.layers):
        changed = jax.tree.map(lambda x: x, params)
        bias = changed["blocks"]["position_bias"]
        changed["blocks"]["position_bias"] = bias.at[layer].set(-bias[layer])
        assert np.abs(encode(changed, TOKENS)[0] - base[0]).max() > 1e-3


def test_bfloat16_is_close_and_parameters_stay_float32(params):
    encoder = TextEncoder(CONFIG, dtype=jnp.bfloat16)
    variables = nn.unbox(jax.eval_shape(encoder.init, jax.random.key(0), TOKENS))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    out = jax.jit(encoder.apply)({"params": params}, TOKENS)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), encode(params, TOKENS), atol=0.08)


def test_remat_recomputes_the_blocks_and_keeps_the_gradient(params):
    def gradient(remat):
        encoder = TextEncoder(CONFIG, remat=remat)
        return jax.grad(lambda p: jnp.sum(encoder.apply({"params": p}, TOKENS) ** 2))

    assert "remat" in str(jax.make_jaxpr(gradient(True))(params))
    assert "remat" not in str(jax.make_jaxpr(gradient(False))(params))
    stored, recomputed = jax.jit(gradient(False))(params), jax.jit(gradient(True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), stored, recomputed)


def test_parameters_are_stacked_and_named():
    boxed = jax.eval_shape(TextEncoder(CONFIG).init, jax.random.key(0), TOKENS)["params"]
    blocks = boxed["blocks"]
    assert boxed["embedding"].names == ("vocabulary", "embed")
    assert blocks["query"]["kernel"].names == ("layers", "embed", "heads")
    assert blocks["out"]["kernel"].names == ("layers", "heads", "embed")
    assert blocks["gate"]["kernel"].names == ("layers", "embed", "mlp")
    assert blocks["down"]["kernel"].names == ("layers", "mlp", "embed")
    for leaf in jax.tree.leaves(blocks):
        assert leaf.shape[0] == CONFIG.layers


def test_initial_kernels_keep_unit_variance():
    # The logits are not divided by sqrt(head width), so the initial kernels must see to it.
    config = TextConfig(vocabulary=8, width=64, layers=2, heads=4, head_width=16, mlp_width=128)
    variables = jax.jit(TextEncoder(config).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    blocks = jax.tree.map(np.asarray, nn.unbox(variables)["params"]["blocks"])
    rng = np.random.default_rng(0)
    for layer in range(config.layers):
        kernel = {
            name: blocks[name]["kernel"][layer] for name in blocks if "kernel" in blocks[name]
        }
        x = rng.normal(size=(256, config.width))
        query, key = (
            (x @ kernel[name]).reshape(256, config.heads, config.head_width)
            for name in ("query", "key")
        )
        assert 0.8 < np.einsum("lkh,mkh->klm", query, key).std() < 1.2
        for name in ("value", "out", "gate", "up", "down"):
            x = rng.normal(size=(256, kernel[name].shape[0]))
            assert 0.8 < (x @ kernel[name]).std() < 1.2, name


def test_sharded_equals_single_device():
    config = dataclasses.replace(CONFIG, width=16, heads=4, head_width=4)
    encoder = TextEncoder(config)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (4, 5), np.int32)
    boxed = jax.jit(encoder.init)(jax.random.key(0), tokens)
    apply = jax.jit(encoder.apply)
    want = apply(nn.unbox(boxed), tokens)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    variables = jax.tree.map(
        lambda box: jax.device_put(box.value, NamedSharding(mesh, spec(box.names))),
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
    with jax.set_mesh(mesh):
        out = apply(variables, jax.device_put(tokens, batch_sharding(mesh, 2)))
    # The batch stays split: left to itself the compiler would split the channels.
    assert out.addressable_shards[0].data.shape == (1, 5, 16)
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_an_id_outside_the_vocabulary_is_not_some_other_word(params):
    out = encode(params, np.where(TOKENS == 9, CONFIG.vocabulary, TOKENS))
    assert bool(jnp.isnan(out).any())


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("layers", 0, "layers is 0; it must be at least 1"),
        ("buckets", 6, "buckets is 6; it must divide by 4"),
        ("max_distance", 8, "max_distance is 8.*exceed 8"),
    ],
)
def test_impossible_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("tokens", [np.zeros(4, np.int32), np.zeros((1, 4), np.float32)])
def test_tokens_of_another_shape_or_type_are_refused(params, tokens):
    with pytest.raises(ValueError, match=r"takes integer \[batch, length\]"):
        encode(params, tokens)
