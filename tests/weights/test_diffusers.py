"""Names and layouts of PyTorch: exact both ways, complete, and errors that name the tensor."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from golden import load_golden

from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text import TextConfig, TextEncoder, init_text
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.diffusers import (
    dit_from_diffusers,
    dit_to_diffusers,
    text_from_transformers,
    text_to_transformers,
    vae_from_diffusers,
    vae_to_diffusers,
)

DIT = DiTConfig(
    width=32, layers=3, heads=2, mlp_width=40, latent_channels=3, text_width=12, time_features=16
)
NETWORKS = {
    "vae": (VAEConfig(4, 6, (1, 1, 2), 2, (False, True), 3, patch=2), init_vae),
    "dit": (DIT, init_dit),
    "text": (TextConfig(40, 12, 2, 3, 5, 20), init_text),
}
FROM = {"vae": vae_from_diffusers, "dit": dit_from_diffusers, "text": text_from_transformers}
TO = {"vae": vae_to_diffusers, "dit": dit_to_diffusers, "text": text_to_transformers}


@functools.cache
def shapes(name):
    config, init = NETWORKS[name]
    return nn.unbox(jax.eval_shape(functools.partial(init, config), jax.random.key(0)))


def draw(name, dtype=np.float32):
    """Parameters no two numbers of which are equal, where the dtype has that many."""
    start = 0

    def count(x):
        nonlocal start
        size = int(np.prod(x.shape))
        start += size
        return np.arange(start - size, start).reshape(x.shape).astype(dtype)

    return jax.tree.map(count, shapes(name))


def assert_identical(result, expected):
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_is_exact(name, dtype):
    params, config = draw(name, dtype), NETWORKS[name][0]
    tensors = TO[name](params, config)
    assert all(x.flags.c_contiguous for x in tensors.values())
    back = FROM[name](tensors, config)
    assert_identical(back, params)
    assert_identical(TO[name](back, config), tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_number_is_lost(name):
    tensors = TO[name](draw(name), NETWORKS[name][0])
    numbers = np.concatenate([x.ravel() for x in tensors.values()])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(numbers.size))


def test_names_and_layouts_are_those_of_pytorch():
    vae = TO["vae"](draw("vae"), NETWORKS["vae"][0])
    assert vae["encoder.conv_in.weight"].shape == (4, 12, 3, 3, 3)
    assert vae["encoder.down_blocks.2.resample.1.weight"].shape == (4, 4, 3, 3)
    assert vae["encoder.down_blocks.5.time_conv.weight"].shape == (4, 4, 3, 1, 1)
    assert vae["encoder.down_blocks.6.conv_shortcut.weight"].shape == (8, 4, 1, 1, 1)
    assert vae["decoder.up_blocks.0.upsamplers.0.time_conv.bias"].shape == (24,)
    assert vae["decoder.mid_block.attentions.0.norm.gamma"].shape == (12, 1, 1)
    assert vae["decoder.norm_out.gamma"].shape == (6, 1, 1, 1)
    dit = TO["dit"](draw("dit"), DIT)
    assert dit["patch_embedding.weight"].shape == (32, 3, 1, 2, 2)
    assert dit["blocks.2.attn2.to_out.0.weight"].shape == (32, 32)
    assert dit["blocks.2.ffn.net.0.proj.weight"].shape == (40, 32)
    assert dit["blocks.0.scale_shift_table"].shape == (1, 6, 32)
    assert dit["scale_shift_table"].shape == (1, 2, 32)
    text = TO["text"](draw("text"), NETWORKS["text"][0])
    assert text["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"].shape == (20, 12)
    assert "encoder.embed_tokens.weight" not in text


def test_rotary_pairs_are_neighbours_there_and_halves_here():
    params, heads, half = draw("dit"), DIT.heads, DIT.head_width // 2
    ours = params["blocks"]["self_attention"]["query"]["kernel"][1]
    theirs = dit_to_diffusers(params, DIT)["blocks.1.attn1.to_q.weight"]
    ours, theirs = ours.T.reshape(heads, 2, half, -1), theirs.reshape(heads, half, 2, -1)
    for pair in range(half):
        np.testing.assert_array_equal(theirs[:, pair], ours[:, :, pair])
    values = params["blocks"]["self_attention"]["value"]["kernel"][1]
    np.testing.assert_array_equal(
        dit_to_diffusers(params, DIT)["blocks.1.attn1.to_v.weight"], values.T
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_that_do_not_fit_are_named(name):
    config = NETWORKS[name][0]
    tensors = TO[name](draw(name), config)
    key = sorted(tensors)[len(tensors) // 2]
    with pytest.raises(ValueError, match=f"{key}' is missing"):
        FROM[name]({k: x for k, x in tensors.items() if k != key}, config)
    with pytest.raises(ValueError, match=r"'add_k_proj\.weight' is unknown"):
        FROM[name]({**tensors, "add_k_proj.weight": np.zeros(3)}, config)
    with pytest.raises(ValueError, match=rf"{key}' has shape \(7, 1\)"):
        FROM[name]({**tensors, key: np.zeros((7, 1))}, config)


def test_parameters_that_do_not_fit_are_named():
    params = draw("dit")
    with pytest.raises(ValueError, match="'head/bias' is missing"):
        dit_to_diffusers({**params, "head": {"kernel": params["head"]["kernel"]}}, DIT)
    with pytest.raises(ValueError, match=r"'head_modulation' has shape \(2, 31\)"):
        dit_to_diffusers({**params, "head_modulation": np.zeros((2, 31))}, DIT)
    with pytest.raises(ValueError, match=r"has shape .* asks for"):
        deeper = DiTConfig(32, 4, 2, 40, 3, (1, 2, 2), 12, 16)
        dit_to_diffusers(params, deeper)


def test_either_name_of_the_embedding_will_do():
    params, config = draw("text"), NETWORKS["text"][0]
    tensors = text_to_transformers(params, config)
    embedding = tensors.pop("shared.weight")
    other = "encoder.embed_tokens.weight"
    assert_identical(text_from_transformers({**tensors, other: embedding}, config), params)
    both = {**tensors, other: embedding, "shared.weight": embedding}
    assert_identical(text_from_transformers(both, config), params)
    with pytest.raises(ValueError, match="differ"):
        text_from_transformers({**both, other: embedding + 1}, config)


def test_the_encoder_with_umt5s_weights_is_umt5():
    weights, arrays = load_golden("text")
    config = NETWORKS["text"][0]
    params = text_from_transformers(weights, config)
    features = jax.jit(TextEncoder(config).apply)({"params": params}, arrays["tokens"])
    assert np.abs(features - arrays["features"]).max() < 1e-5 * np.abs(arrays["features"]).max()
