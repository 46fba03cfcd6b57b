"""The VAE with shortcuts around its levels: Wan 2.2's own function, streamed exactly."""

import functools

import jax
import numpy as np
import pytest
from golden import load_golden

from sora_jax.models.sizes import abstract_params
from sora_jax.models.vae import VAE, VAEConfig, init_vae
from sora_jax.models.vae_stream import in_chunks
from sora_jax.weights.diffusers import vae_from_diffusers, vae_to_diffusers

CONFIG = VAEConfig(2, 3, (1, 2, 4, 4), 1, (False, True, True), 3, patch=2, shortcuts=True)
WEIGHTS, ARRAYS = load_golden("vae_with_shortcuts")
PARAMS = {"params": vae_from_diffusers(WEIGHTS, CONFIG)}

# Unoptimised code takes half as long to make.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
run = jit(VAE(CONFIG).apply, static_argnames="method")


def relative_error(result, name):
    expected = ARRAYS[name]
    assert result.shape == expected.shape
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("clip", range(3), ids=["1x48x32", "5x16x32", "17x32x16"])
def test_the_function_is_wans(clip):
    mean, logvar, _ = run(PARAMS, ARRAYS[f"video_{clip}"], method="encode")
    frames, _ = run(PARAMS, ARRAYS[f"latents_{clip}"], method="decode")
    assert relative_error(mean, f"mean_{clip}") < 1e-5
    assert relative_error(logvar, f"logvar_{clip}") < 1e-5
    assert relative_error(frames, f"frames_{clip}") < 1e-5


def test_streamed_it_is_the_same():
    """Chunk by chunk in one program, from a clip of 17 frames."""

    def stream(params, x, method, taken, given):
        def step(chunk, carry):
            y, *_, carry = VAE(CONFIG).apply(params, chunk, carry, method=method)
            return y, carry

        return in_chunks(step, x, taken, given)

    stream = jit(stream, static_argnums=(2, 3, 4))
    mean = stream(PARAMS, ARRAYS["video_2"], "encode", 4, 1)
    frames = stream(PARAMS, ARRAYS["latents_2"], "decode", 1, 4)
    assert relative_error(mean, "mean_2") < 1e-5
    assert relative_error(frames, "frames_2") < 1e-5


def test_a_length_that_no_chunks_fill_is_refused():
    with pytest.raises(ValueError, match=r"8 frames are no 1 \+ 4k: cut the clip to 5"):
        in_chunks(lambda x, carry: (x, carry), np.zeros((1, 8)), 4, 1)


def test_the_tensors_are_wans():
    back = vae_to_diffusers(PARAMS["params"], CONFIG)
    assert set(back) == set(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_wan_22_has_its_size():
    config = VAEConfig(160, 256, latent_channels=48, patch=2, shortcuts=True)
    shapes = abstract_params(init_vae, config)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) == 704_688_668
    assert config.latent_shape(121, 704, 1280) == (31, 44, 80, 48)


def test_channels_that_shortcuts_cannot_regroup_are_refused():
    with pytest.raises(ValueError, match=r"multipliers \(1, 3\) do not suit shortcuts.*\(1, 2"):
        VAEConfig(multipliers=(1, 3), temporal=(True,), shortcuts=True)
