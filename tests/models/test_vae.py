"""The VAE: causal, streamed exactly, images as videos of one frame, and Wan's own function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden import load_golden

from sora_jax.models.sizes import abstract_params
from sora_jax.models.vae import VAE, VAEConfig, denormalise, fold, init_vae, normalise, unfold
from sora_jax.weights.diffusers import vae_from_diffusers

CONFIG = VAEConfig(4, 4, (1, 2, 2), 1, (True, True), 3, patch=1)
HEIGHT, WIDTH = 12, 4


# Compiling is what these tests spend their time on; unoptimised code takes half as long to make.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def params():
    """Kernels that keep magnitudes, gains off one and biases off zero."""
    rng = np.random.default_rng(0)
    shapes = nn.unbox(abstract_params(init_vae, CONFIG))

    def draw(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return noise * np.prod(x.shape[:-1]) ** -0.5
        return 0.2 * noise + (path[-1].key == "scale")

    return jax.tree.map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).uniform(-1, 1, (1, 9, HEIGHT, WIDTH, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def latents():
    shape = (1, *CONFIG.latent_shape(9, HEIGHT, WIDTH))
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def encode_once(params, x, carry=None):
    return VAE(CONFIG).apply({"params": params}, x, carry, method="encode")


def decode_once(params, z, carry=None):
    return VAE(CONFIG).apply({"params": params}, z, carry, method="decode")


encode, decode = jit(encode_once), jit(decode_once)


@jit
def encode_gradient(params, x, cotangent):
    return jax.vjp(lambda x: encode_once(params, x)[:2], x)[1]((cotangent, cotangent))[0]


@jit
def decode_gradient(params, z, cotangent):
    return jax.vjp(lambda z: decode_once(params, z)[0], z)[1](cotangent)[0]


def only(x, frame):
    """x with every other frame zero."""
    return np.where(np.arange(x.shape[1]).reshape(1, -1, 1, 1, 1) == frame, x, 0)


def sizes_of_frames(gradient):
    return np.abs(gradient).max(axis=(0, 2, 3, 4))


@pytest.mark.parametrize("frame", range(3))
def test_a_latent_frame_sees_no_later_pixel(params, clip, latents, frame):
    sizes = sizes_of_frames(encode_gradient(params, clip, only(latents, frame)))
    assert (sizes[4 * frame + 1 :] == 0).all()
    assert (sizes[: 4 * frame + 1] > 0).all()


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_a_pixel_frame_sees_no_later_latent(params, clip, latents, frame):
    sizes = sizes_of_frames(decode_gradient(params, latents, only(clip, frame)))
    own = (frame + 3) // 4
    assert (sizes[own + 1 :] == 0).all()
    assert (sizes[: own + 1] > 0).all()


@pytest.mark.parametrize("chunks", [(1, 4, 4), (1, 8), (5, 4)])
def test_encoding_in_chunks_equals_the_whole(params, clip, chunks):
    means, logvars, carry, start = [], [], None, 0
    for size in chunks:
        mean, logvar, carry = encode(params, clip[:, start : start + size], carry)
        means.append(mean)
        logvars.append(logvar)
        start += size
    mean, logvar, _ = encode(params, clip)
    np.testing.assert_allclose(np.concatenate(means, axis=1), mean, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(logvars, axis=1), logvar, atol=1e-5)


@pytest.mark.parametrize("chunks", [(1, 1, 1), (2, 1)])
def test_decoding_in_chunks_equals_the_whole(params, latents, chunks):
    frames, carry, start = [], None, 0
    for size in chunks:
        y, carry = decode(params, latents[:, start : start + size], carry)
        assert y.shape[1] == 4 * size - 3 * (start == 0)
        frames.append(y)
        start += size
    np.testing.assert_allclose(
        np.concatenate(frames, axis=1), decode(params, latents)[0], atol=1e-5
    )


def test_the_carry_keeps_its_shapes(params, clip, latents):
    """So that a scan over chunks can hold it."""
    *_, carry = encode(params, clip[:, :1])
    *_, after = encode(params, clip[:, 1:5], carry)
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, after)
    _, carry = decode(params, latents[:, :1])
    _, after = decode(params, latents[:, 1:2], carry)
    assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, after)


def test_an_image_is_a_video_of_one_frame(params, clip, latents):
    for alone, first in zip(encode(params, clip[:, :1])[:2], encode(params, clip)[:2]):
        np.testing.assert_allclose(alone, first[:, :1], atol=1e-5)
    alone, first = decode(params, latents[:, :1])[0], decode(params, latents)[0]
    np.testing.assert_allclose(alone, first[:, :1], atol=1e-5)


def test_parameters_do_not_depend_on_the_clip():
    def shapes(frames, height, width):
        noise = jnp.zeros((1, *CONFIG.latent_shape(frames, height, width)))
        clip = jnp.zeros((1, frames, height, width, 3))
        return jax.eval_shape(VAE(CONFIG).init, jax.random.key(0), clip, noise)

    assert shapes(1, 4, 4) == shapes(9, 4, 8) == shapes(5, 12, 8)


@pytest.mark.parametrize("name", ["mean", "logvar", "frames"])
def test_the_function_is_wans(wan, name):
    result, expected = wan
    error = np.abs(result[name] - expected[name]).max()
    assert error < 1e-5 * np.abs(expected[name]).max()


@pytest.fixture(scope="module")
def wan():
    """What this VAE makes of the weights and inputs of a Wan VAE, and what Wan's makes."""
    weights, arrays = load_golden("vae")
    config = VAEConfig(2, 4, (1, 1, 2, 2), 1, (False, True, True), 3, patch=2)
    variables = {"params": vae_from_diffusers(weights, config)}
    run = jit(VAE(config).apply, static_argnames="method")
    mean, logvar, _ = run(variables, arrays["video"], method="encode")
    frames, _ = run(variables, arrays["latents"], method="decode")
    return {"mean": mean, "logvar": logvar, "frames": frames}, arrays


def test_the_default_is_wan_21():
    shapes = abstract_params(init_vae, VAEConfig())
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) == 126_892_531
    assert VAEConfig().latent_shape(81, 480, 832) == (21, 60, 104, 16)


def test_reconstruction_draws_with_the_deviation_of_the_posterior(clip):
    config = VAEConfig(4, 4, (1,), 0, (), 3)
    vae, noise = VAE(config), np.random.default_rng(1).normal(size=(1, 1, HEIGHT, WIDTH, 3))
    variables = jit(vae.init)(jax.random.key(0), clip[:, :1], noise)
    y, mean, logvar = jit(vae.apply)(variables, clip[:, :1], noise)
    drawn = mean + np.exp(logvar / 2) * noise
    expected, _ = jit(functools.partial(vae.apply, method="decode"))(variables, drawn)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("bias, bound", [(1e4, 20.0), (-1e4, -30.0)])
def test_the_log_variance_is_bounded(params, clip, bias, bound):
    quantize = {**params["encoder"]["quantize"], "bias": np.full(6, bias, np.float32)}
    params = {**params, "encoder": {**params["encoder"], "quantize": quantize}}
    np.testing.assert_array_equal(encode(params, clip)[1], bound)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        VAEConfig(4, 6, (1, 2), 1, (False,), 3, patch=2),
        VAEConfig(4, 4, (1, 1, 2, 2), 2, (False, True, True), 5),
    ],
)
def test_latent_shape_is_the_shape_of_the_latents(config):
    params = abstract_params(init_vae, config)
    size = (5, 3 * config.spatial_stride, config.spatial_stride)
    clip = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    vae = VAE(config, jnp.bfloat16)

    def run(params, clip):
        mean, logvar, _ = vae.apply({"params": nn.unbox(params)}, clip, method="encode")
        return mean, logvar, vae.apply({"params": nn.unbox(params)}, mean, method="decode")[0]

    mean, logvar, frames = jax.eval_shape(run, params, clip)
    assert mean.shape == logvar.shape == (2, *config.latent_shape(*size))
    assert frames.shape == clip.shape
    assert mean.dtype == logvar.dtype == frames.dtype == jnp.float32


@pytest.mark.parametrize(
    "size, words",
    [
        ((8, 64, 64), ("8 frames", "5 and 9")),
        ((0, 64, 64), ("0 frames", "1 and 5")),
        ((5, 60, 64), ("height 60", "56 and 64")),
        ((5, 64, 3), ("width 3", "8 and 16")),
    ],
)
def test_errors_of_sizes_name_the_nearest(size, words):
    with pytest.raises(ValueError) as error:
        VAEConfig().latent_shape(*size)
    assert all(word in str(error.value) for word in words)


def test_errors_of_the_config_name_both_values():
    with pytest.raises(ValueError, match=r"\(True,\).*\(1, 2, 4\)"):
        VAEConfig(multipliers=(1, 2, 4), temporal=(True,))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"patch": 0}, "VAEConfig.patch is 0; it must be at least 1"),
        ({"encoder_width": 0}, "VAEConfig.encoder_width is 0"),
        ({"decoder_width": -8}, "VAEConfig.decoder_width is -8"),
        ({"blocks": -1}, "VAEConfig.blocks is -1; it must not be negative"),
        ({"latent_channels": 0}, "VAEConfig.latent_channels is 0"),
        ({"multipliers": 4}, "VAEConfig.multipliers is 4; .* for each level"),
        ({"multipliers": (), "temporal": ()}, r"VAEConfig.multipliers is \(\)"),
        ({"multipliers": (1, 0), "temporal": (True,)}, r"VAEConfig.multipliers is \(1, 0\)"),
        ({"multipliers": (1, 2), "temporal": True}, "VAEConfig.temporal is True; .* each halving"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        VAEConfig(**fields)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_unfold_inverts_fold(clip, patch):
    folded = fold(clip, patch)
    assert folded.shape == (1, 9, HEIGHT // patch, WIDTH // patch, 3 * patch**2)
    np.testing.assert_array_equal(unfold(folded, patch), clip)


def test_denormalise_inverts_normalise():
    x = np.random.default_rng(0).normal(3, 5, (2, 40, 1, 2, 3)).astype(np.float32)
    mean, std = x.mean(axis=(0, 1, 2, 3)), x.std(axis=(0, 1, 2, 3))
    y = np.asarray(normalise(x, mean, std))
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2, 3)), 1, atol=1e-5)
    np.testing.assert_allclose(denormalise(y, mean, std), x, atol=1e-5)
