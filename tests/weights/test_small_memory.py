"""Sampling in small memory: int8, what computes in which dtype, parts that take turns."""

import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.diffusion.conditioning import Given
from sora_jax.models.dit import DiT
from sora_jax.models.text import TextEncoder
from sora_jax.weights.__main__ import import_open
from sora_jax.weights.in_turn import InTurn
from tests.tiny_model import PROMPT, write_model
from tests.weights.open_folders import PIPELINE


def is_quantised(x):
    return isinstance(x, qwix.QArray)


def flatten(params):
    return traverse_util.flatten_dict(params, sep="/", is_leaf=lambda _, x: is_quantised(x))


@pytest.mark.parametrize("source", ["folder", "open"])
def test_int8_is_the_nearest_of_255_steps_a_column(source, folder):
    source = folder if source == "folder" else PIPELINE
    whole, small = (sora_jax.load(source, dtype=dtype).params for dtype in ("float32", "int8"))
    for part in whole:
        wide, held = flatten(whole[part]), flatten(small[part])
        assert wide.keys() == held.keys()
        quantised = {path for path, x in held.items() if is_quantised(x)}
        matrices = {p for p in held if "blocks/" in p and p.endswith("kernel")}
        assert quantised == matrices and bool(matrices) == (part != "vae")
        for path, x in held.items():
            expected = np.asarray(wide[path])
            if path not in quantised:
                np.testing.assert_array_equal(x, expected.astype(jnp.bfloat16))
                continue
            scale = np.abs(expected).max(axis=1, keepdims=True) / np.float32(127.5)
            assert x.qvalue.dtype == np.int8 and x.scale.dtype == np.float32
            np.testing.assert_allclose(x.scale, scale, rtol=1e-6)
            error = np.abs(x.qvalue * np.asarray(x.scale) - expected)
            assert (error <= 0.5001 * scale).all() and error.max() > 0.1 * scale.min()


def test_a_layer_multiplies_by_what_its_int8_stands_for(folder, model):
    """In float32, so that nothing but the weights differs from matrices made by NumPy."""
    small = sora_jax.load(folder, dtype="int8").params

    def widen(x):
        x = np.asarray(x.qvalue, np.float32) * np.asarray(x.scale) if is_quantised(x) else x
        return np.asarray(x, np.float32)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 2, 2, 4, model.dit_config.latent_channels)).astype(np.float32)
    text = rng.normal(size=(1, 8, model.dit_config.text_width)).astype(np.float32)
    tokens = np.array([[5, 9, 1, 0]])
    dit, encoder = DiT(model.dit_config), TextEncoder(model.text_config)
    for part, apply in (
        ("dit", jax.jit(lambda p: dit.apply(p, x, np.full((1, 2), 0.4), text))),
        ("text", jax.jit(lambda p: encoder.apply(p, tokens))),
    ):
        wide = jax.tree.map(widen, small[part], is_leaf=is_quantised)
        made, expected = (np.asarray(apply({"params": p})) for p in (small[part], wide))
        np.testing.assert_allclose(made, expected, atol=2e-6 * np.abs(expected).max())
        exact = np.asarray(apply({"params": model.params[part]}))
        error = np.abs(made - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < 0.03, "close to float32, and not the same"


@pytest.mark.parametrize(
    ("dtype", "computes"),
    [
        ("float32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "bfloat16"),
        ("int8", "bfloat16"),
    ],
)
def test_a_model_computes_in_what_it_is_held_in(folder, model, dtype, computes):
    held = sora_jax.load(folder, dtype=dtype)
    text = held.read([PROMPT])
    assert text.dtype == computes
    levels = np.float32([0.8, 0.0])
    x = model.noise(0, (1, *model.latent_shape(model.settings.size, model.settings.frames)))
    settings = held.settings.override(guidance=1.0)
    latents = held.advance(text, x, levels, settings)
    assert latents.dtype == jnp.float32
    # One step of Euler's solver to level 0 ends at the network's own prediction.
    network = DiT(held.dit_config, jnp.dtype(computes))
    t = np.full((1, x.shape[1]), levels[0])
    expected = jax.jit(network.apply)({"params": held.params["dit"]}, x, t, text[:1])
    limit = settings.latent_limit
    np.testing.assert_allclose(latents, np.clip(expected, -limit, limit), atol=1e-5)


def test_small_models_make_nearly_the_same_video(folder, model):
    clip = model.sample(PROMPT, seed=1)
    for dtype in ("bfloat16", "int8"):
        other = sora_jax.load(folder, dtype=dtype).sample(PROMPT, seed=1)
        square = np.mean((other.astype(np.float64) - clip) ** 2)
        assert square > 0 and 10 * np.log10(255**2 / square) > 35


def take_turns(model):
    """A model whose parts are alone in memory or the test fails, and the list of those read."""
    read, alive = [], {}

    def load(part):
        assert not any(leaf() is not None for leaf in alive.values()), f"held beside {part}"
        params = jax.tree.map(jnp.copy, model.params[part])
        read.append(part)
        alive.clear()
        alive.update(enumerate(weakref.ref(x) for x in jax.tree.leaves(params)))
        return params

    return dataclasses.replace(model, params=InTurn(model.params, load)), read


def test_parts_that_take_turns_make_the_same_and_are_alone_in_memory(model):
    turns, read = take_turns(model)
    np.testing.assert_array_equal(turns.sample(PROMPT, seed=1), model.sample(PROMPT, seed=1))
    assert read == ["text", "dit", "vae"]
    turns.sample(PROMPT, seed=2)
    assert read == ["text", "dit", "vae", "dit", "vae"], "the same prompt is not read again"
    first = Given(turns.encode(np.zeros((1, 1, 16, 32, 3), np.uint8))[0], 0)
    latents = [turns.sample_latents("a blue square moves up", given=[first]) for _ in range(2)]
    np.testing.assert_array_equal(*latents)
    assert read[5:] == ["text", "dit"], "what is at work already stays"


@pytest.mark.parametrize("source", ["folder", "open"])
def test_a_folder_is_read_in_turn(source, folder):
    source = folder if source == "folder" else PIPELINE
    sampling = {"size": (32, 16), "frames": 5, "steps": 2}
    clips = [sora_jax.load(source, in_turn=t).sample(PROMPT, **sampling) for t in (False, True)]
    np.testing.assert_array_equal(*clips)


def test_a_damaged_part_is_known_before_its_turn(folder, tmp_path):
    path = write_model(tmp_path / "model")
    file = path / "vae.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"vae.safetensors is truncated or damaged"):
        sora_jax.load(path, in_turn=True)
    with pytest.raises(KeyError):
        sora_jax.load(folder, in_turn=True).params["audio"]


def test_what_is_no_dtype_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"dtype 'int4' must be 'stored' or one of .*'int8'"):
        sora_jax.load(folder, dtype="int4")
    with pytest.raises(ValueError, match="--dtype=int8 is of no file: import as stored"):
        import_open(PIPELINE, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_a_number_beyond_float16_is_refused_there(tmp_path):
    path = write_model(tmp_path / "model")
    tensors = load_file(path / "dit.safetensors")
    tensors["head/bias"][0] = 1e5
    save_file(tensors, path / "dit.safetensors")
    with pytest.raises(ValueError, match=r"dit.safetensors: 'head/bias' goes beyond float16's 655"):
        sora_jax.load(path, dtype="float16")
    assert sora_jax.load(path, dtype="bfloat16").params["dit"]["head"]["bias"][0] > 9e4
