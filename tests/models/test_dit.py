"""The transformer: silent at the start, a level for every frame, and Wan's own function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from golden import load_golden

from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.dit_blocks import Block, Text
from sora_jax.models.dit_config import DiTConfig, flops
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text_reader import TextReader
from sora_jax.weights.diffusers import dit_from_diffusers

CONFIG = DiTConfig(
    width=32, layers=2, heads=2, mlp_width=40, latent_channels=3, text_width=12, time_features=16
)
WAN = {
    "1.3B": (DiTConfig(), 1_418_996_800),
    "14B": (DiTConfig(5120, 40, 40, 13824), 14_288_491_584),
    "5B": (DiTConfig(3072, 30, 24, 14336, 48), 4_999_787_712),
}

# Compiling is what these tests spend their time on; unoptimised code takes half as long to make.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def wan():
    """Weights of a small Wan transformer with what goes in and what it makes of it."""
    weights, arrays = load_golden("dit")
    return dit_from_diffusers(weights, CONFIG), arrays


@jit
def run(params, x, levels, text):
    return DiT(CONFIG).apply({"params": params}, x, levels, text)


def assert_close(result, expected, tolerance=1e-5):
    assert np.abs(result - expected).max() < tolerance * np.abs(expected).max()


def test_the_function_is_wans_with_one_level(wan):
    params, arrays = wan
    levels = np.repeat(arrays["levels"][:, 1:2], 3, axis=1)
    result = run(params, arrays["x"], levels, arrays["text"])
    assert_close(result, arrays["of_one_level"])


def test_the_function_is_wans_with_a_level_for_each_frame(wan):
    params, arrays = wan
    result = run(params, arrays["x"], arrays["levels"], arrays["text"])
    assert_close(result, arrays["of_levels"])


@pytest.mark.parametrize("size", WAN)
def test_the_number_of_parameters_is_wans(size):
    config, expected = WAN[size]
    shapes = abstract_params(init_dit, config)
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(shapes)) == expected


def test_a_new_block_is_the_identity():
    rng = np.random.default_rng(0)
    x, levels, angles, keys = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 3, 4, 32), (2, 3, 6, 32), (3, 4, 8), (2, 5, 2, 16))
    )
    text = Text(keys, keys)
    # New levels are zero: the projection that all blocks share starts so, as the next test holds.
    block, levels = Block(CONFIG, jnp.float32), 0 * levels
    variables = nn.unbox(jit(block.init)(jax.random.key(0), x, text, levels, angles, None))
    y, _ = jit(block.apply)(variables, x, text, levels, angles, None)
    np.testing.assert_array_equal(y, x)


def test_a_new_model_predicts_zero_and_its_levels_are_silent(wan):
    params = nn.unbox(jit(functools.partial(init_dit, CONFIG))(jax.random.key(0)))
    arrays = wan[1]
    y = run(params, arrays["x"], arrays["levels"], arrays["text"])
    np.testing.assert_array_equal(y, np.zeros_like(arrays["x"]))
    assert not params["time_levels"]["kernel"].any()
    assert not params["time_levels"]["bias"].any()


def test_the_level_of_a_frame_acts_on_that_frame(wan):
    """With self-attention silent nothing else connects frames."""
    params, arrays = wan
    attention = params["blocks"]["self_attention"]
    silent = {**attention, "out": jax.tree.map(np.zeros_like, attention["out"])}
    params = {**params, "blocks": {**params["blocks"], "self_attention": silent}}
    before = run(params, arrays["x"], arrays["levels"], arrays["text"])
    changed = arrays["levels"] + np.array([0, 0.2, 0], np.float32)
    after = run(params, arrays["x"], changed, arrays["text"])
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (np.abs(before[:, 1] - after[:, 1]).max(axis=(1, 2, 3)) > 0.05).all()


def test_frames_see_each_other(wan):
    params, arrays = wan
    before = run(params, arrays["x"], arrays["levels"], arrays["text"])
    x = arrays["x"] + np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1, 1)
    after = run(params, x, arrays["levels"], arrays["text"])
    assert (np.abs(before - after).max(axis=(2, 3, 4)) > 1e-3).all()


def test_clips_of_a_batch_do_not_mix(wan):
    params, arrays = wan
    x, levels, text = arrays["x"], arrays["levels"], arrays["text"]
    both = run(params, x, levels, text)
    turned = run(params, x[::-1], levels[::-1], text[::-1])
    np.testing.assert_allclose(both, turned[::-1], atol=1e-5)


def test_positions_past_the_prompt_are_zeros_that_count(wan):
    """As in Wan: each zero is attended to like a word, wherever it stands; none is masked."""
    params, arrays = wan
    x, levels, text = arrays["x"], arrays["levels"], arrays["text"]
    ending = run(params, x, levels, text)
    assert not text[1, 3:].any()
    beginning = run(params, x, levels, np.roll(text, 2, axis=1))
    np.testing.assert_allclose(ending, beginning, atol=1e-5)
    shorter = run(params, x, levels, text[:, :3])
    assert np.abs(shorter[1] - ending[1]).max() > 1e-3


@pytest.mark.parametrize("latents", [(1, 2, 2), (5, 8, 6), (3, 2, 10), (2, 1, 7)])
def test_any_grid_is_an_input(latents):
    x = jax.ShapeDtypeStruct((2, *latents, 3), jnp.float32)
    levels = jax.ShapeDtypeStruct((2, latents[0]), jnp.float32)
    text = jax.ShapeDtypeStruct((2, 7, 12), jnp.float32)
    params = nn.unbox(abstract_params(init_dit, CONFIG))

    def half(params, *inputs):
        return DiT(CONFIG, jnp.bfloat16).apply({"params": params}, *inputs)

    y = jax.eval_shape(half, params, x, levels, text)
    assert (y.shape, y.dtype) == (x.shape, jnp.float32)


def test_a_patch_over_the_edge_is_filled_up_with_what_lies_there(wan):
    params, arrays = wan
    x, rest = arrays["x"], (arrays["levels"], arrays["text"])
    cut = x[:, :, :-1, :-1]
    filled = np.pad(cut, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], mode="edge")
    expected = run(params, filled, *rest)[:, :, :-1, :-1]
    np.testing.assert_allclose(run(params, cut, *rest), expected, atol=1e-6)
    assert CONFIG.grid((3, 5, 4)) == (3, 3, 2)


def test_text_read_before_is_text_read_inside(wan):
    params, arrays = wan
    reader = {"params": params["text_reader"]}
    text = jit(TextReader(CONFIG).apply)(reader, arrays["text"])
    without = {name: x for name, x in params.items() if name != "text_reader"}
    result = run(without, arrays["x"], arrays["levels"], text)
    expected = run(params, arrays["x"], arrays["levels"], arrays["text"])
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"width": 32, "heads": 3}, "width 32 over 3 heads"),
        ({"width": 30, "heads": 2}, "width 30 over 2 heads"),
        ({"prediction": "noise"}, "'noise'"),
        ({"heads": 0}, "DiTConfig.heads is 0; it must be at least 1"),
        ({"width": -32}, "DiTConfig.width is -32; it must be at least 1"),
        ({"mlp_width": 0}, "DiTConfig.mlp_width is 0"),
        ({"layers": 0}, "DiTConfig.layers is 0"),
        ({"text_width": 0}, "DiTConfig.text_width is 0"),
        ({"image_channels": -1}, "DiTConfig.image_channels is -1; use 0 for none"),
        ({"image_channels": 1.5}, "DiTConfig.image_channels is 1.5; use 0 for none"),
        ({"image_width": 8}, "image_width is 8 without image_channels"),
        ({"image_channels": 9, "image_positions": 8}, "image_positions is 8 without image_width"),
        ({"patch": 2}, "DiTConfig.patch is 2; it must be three numbers"),
        ({"patch": (2, 2)}, r"DiTConfig.patch is \(2, 2\)"),
        ({"patch": (1, 0, 2)}, r"DiTConfig.patch is \(1, 0, 2\)"),
        ({"patch": (1, 2.0, 2)}, r"DiTConfig.patch is \(1, 2.0, 2\)"),
    ],
)
def test_errors_of_the_config_name_the_value(fields, words):
    with pytest.raises(ValueError, match=words):
        DiTConfig(**fields)


@pytest.mark.parametrize("policy", ["products", "blocks"])
def test_recomputing_the_blocks_changes_nothing(wan, policy):
    params, arrays = wan

    @functools.partial(jit, static_argnames="remat")
    def loss_and_gradient(params, remat):
        def loss(params):
            model = DiT(CONFIG, remat=remat)
            inputs = arrays["x"], arrays["levels"], arrays["text"]
            return jnp.mean(model.apply({"params": params}, *inputs) ** 2)

        return jax.value_and_grad(loss)(params)

    kept, recomputed = (loss_and_gradient(params, remat) for remat in ("none", policy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, recomputed)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(kept))


def test_recomputing_stores_less():
    def stored(remat):
        x = jax.ShapeDtypeStruct((1, 3, 8, 8, 3), jnp.float32)
        inputs = (x, jnp.zeros((1, 3)), jnp.zeros((1, 5, 12)))
        params = nn.unbox(abstract_params(init_dit, CONFIG))
        model = DiT(CONFIG, remat=remat)
        saved = jax.eval_shape(
            lambda params, x: jax.vjp(lambda p: model.apply({"params": p}, x, *inputs[1:]), params),
            params,
            x,
        )
        return sum(np.prod(x.shape) for x in jax.tree.leaves(saved))

    assert stored("products") < stored("none") * 0.8
    assert stored("blocks") < stored("products") * 0.8


def test_kept_products_spare_attention_a_second_forward_pass():
    """The exponentials of a block's scores: one forward, one in the backward pass's recomputation
    of the weights, and one more only where the attention itself is recomputed."""
    config = dataclasses.replace(CONFIG, layers=1)
    x = jnp.zeros((1, 4, 32, 32, CONFIG.latent_channels))
    params = nn.unbox(abstract_params(init_dit, config))

    def exponentials(remat):
        model = DiT(config, remat=remat)
        text = jnp.zeros((1, 5, config.text_width))

        def loss(params):
            return jnp.sum(model.apply({"params": params}, x, jnp.zeros((1, 4)), text))

        return jax.jit(jax.grad(loss)).lower(params).as_text().count("stablehlo.exponential")

    assert exponentials("products") < exponentials("blocks")


def products(jaxpr):
    """Operations of all matrix products of a traced function, loops by their length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = np.prod([left[axis] for axis in contracted])
            total += 2 * depth * np.prod(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * products(inner)
    return total


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 2)])
@pytest.mark.parametrize("frames", [2, 6])
def test_flops_are_those_of_the_traced_matrix_products(patch, frames):
    config = DiTConfig(48, 3, 4, 56, 5, patch, 20, 24)
    params = nn.unbox(abstract_params(init_dit, config))
    inputs = [jnp.zeros(shape) for shape in ((1, frames, 4, 6, 5), (1, frames), (1, 9, 20))]
    traced = jax.make_jaxpr(lambda p: DiT(config).apply({"params": p}, *inputs))(params)
    tokens = np.prod(config.grid((frames, 4, 6)))
    assert flops(config, tokens, 9, frames // patch[0]) == products(traced.jaxpr)


def test_flops_with_images_are_those_of_the_traced_matrix_products():
    config = DiTConfig(48, 3, 4, 56, 5, (1, 2, 2), 20, 24, image_channels=9, image_width=16)
    params = nn.unbox(abstract_params(init_dit, config))
    shapes = ((1, 2, 4, 6, 14), (1, 2), (1, 9, 20), (1, 7, 16))
    inputs = [jnp.zeros(shape) for shape in shapes]
    traced = jax.make_jaxpr(lambda p: DiT(config).apply({"params": p}, *inputs))(params)
    assert traced.out_avals[0].shape == (1, 2, 4, 6, 5)
    assert flops(config, 12, 9, 2, 7) == products(traced.jaxpr)
