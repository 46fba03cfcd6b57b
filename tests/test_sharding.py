"""The table of axes, its errors, and that a mesh splits what the table says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from sora_jax import sharding
from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig, init_image
from sora_jax.models.text import TextConfig, init_text
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.sharding import (
    MESH_AXES,
    RULES,
    batch_sharding,
    constrain,
    fitting_spec,
    gather,
    make_mesh,
    spec,
    tree_shardings,
    ways,
)


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_the_table_names_only_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= set(MESH_AXES)


def test_names_become_mesh_axes():
    assert spec(("batch", "tokens", None)) == PartitionSpec(("data", "fsdp"), ("context",), None)
    assert spec(("layers", "embed", "heads")) == PartitionSpec(
        None, ("fsdp", "context"), ("tensor",)
    )
    assert spec(()) == PartitionSpec()


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'widht' is not in RULES; known are .*'embed'"):
        spec(("embed", "widht"))


@pytest.mark.parametrize("names", [("embed", "embed"), ("heads", None, "mlp"), ("batch", "embed")])
def test_two_dimensions_on_one_mesh_axis_are_refused(names):
    with pytest.raises(ValueError, match="two dimensions on mesh axis"):
        spec(names)


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((3, 5))
    assert constrain(x, ("batch", "tokens")) is x


def test_constrain_lays_out_on_the_mesh():
    mesh = make_mesh({"data": 2, "fsdp": 2, "context": 2})
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(2 * x, ("batch", "tokens")))(jnp.ones((8, 6)))
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 3)}


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (None, (1, 8, 1, 1)),
        ({"data": 8}, (8, 1, 1, 1)),
        ({"tensor": 2, "fsdp": -1, "data": 2}, (2, 2, 1, 2)),
        ({"fsdp": -1, "context": 8}, (1, 1, 8, 1)),
        ({"data": -1, "fsdp": -1, "tensor": 2}, (1, 4, 1, 2)),
    ],
)
def test_a_mesh_fills_the_devices(shape, sizes):
    mesh = make_mesh(shape)
    assert mesh.axis_names == MESH_AXES and mesh.devices.shape == sizes


def test_a_mesh_of_some_devices():
    assert make_mesh(devices=jax.devices()[:2]).devices.shape == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model": 8}, "mesh axis 'model' is unknown"),
        ({"data": 3}, "does not fill the 8 devices"),
        ({"data": 3, "fsdp": -1}, "does not fill the 8 devices"),
        ({"data": 16, "fsdp": -1}, "does not fill the 8 devices"),
        ({"data": 0, "fsdp": -1}, "does not fill the 8 devices"),
        ({"data": -8, "fsdp": -1}, "does not fill the 8 devices"),
        ({"context": -1, "fsdp": -1}, r"leaves fsdp, context open \(-1\)"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


def test_leaves_follow_their_names_and_others_are_replicated():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    tree = {
        "kernel": boxed((8, 6), ("embed", "heads")),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "plain": jax.ShapeDtypeStruct((3, 5), jnp.float32),
    }
    shardings = tree_shardings(tree, mesh)
    assert shardings["kernel"].shard_shape((8, 6)) == (2, 3)
    assert shardings["plain"].shard_shape((3, 5)) == (3, 5)
    assert shardings["step"].is_fully_replicated


def test_a_dimension_that_does_not_divide_is_named():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    tree = {"block": {"kernel": boxed((8, 7), ("embed", "heads"))}}
    with pytest.raises(ValueError, match=r"block.*kernel.*dimension of 7.*tensor.*2 ways"):
        tree_shardings(tree, mesh)


def test_a_batch_is_split_over_the_data_axes_only():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert batch_sharding(mesh, 3).shard_shape((8, 4, 6)) == (2, 4, 6)


@pytest.mark.parametrize(
    ("init", "config", "share"),
    [
        (init_dit, DiTConfig(32, 2, 2, 64, 4, (1, 2, 2), 16, 16), 0.3),
        (init_dit, DiTConfig(32, 2, 2, 64, image_channels=20, image_width=16), 0.3),
        (init_image, ImageConfig(32, 2, 2, 64, 28, 14), 0.3),
        (init_text, TextConfig(64, 32, 2, 2, 16, 64), 0.3),
        (init_vae, VAEConfig(4, 4, (1, 2, 2), 1, (True, True), 4), 1.0),
    ],
)
def test_every_parameter_has_a_layout(init, config, share):
    """And of the transformers, whose parameters are many, no device holds more than its share."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    abstract = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    shardings = tree_shardings(abstract, mesh)
    shapes = [leaf.shape for leaf in jax.tree.leaves(nn.unbox(abstract))]
    shards = [s.shard_shape(shape) for s, shape in zip(jax.tree.leaves(shardings), shapes)]
    held = sum(np.prod(shape) for shape in shards) / sum(np.prod(shape) for shape in shapes)
    assert held <= share


def test_weights_are_in_few_parts_and_copies_take_the_rest(monkeypatch):
    monkeypatch.setattr(sharding, "_WEIGHT_PARTS", 4)
    assert make_mesh({"data": -1, "fsdp": -1, "context": 2}).devices.shape == (2, 2, 2, 1)
    assert make_mesh({"data": -1, "fsdp": -1, "context": 8}).devices.shape == (1, 1, 8, 1)


def test_what_does_not_divide_is_whole_on_every_device():
    with jax.set_mesh(make_mesh({"fsdp": 2, "context": 4})):
        assert fitting_spec(("batch", "tokens"), (4, 6)) == PartitionSpec("fsdp", None)
        assert fitting_spec(("batch", "tokens"), (3, 8)) == PartitionSpec(None, "context")
        assert ways("tokens") == 4
    assert ways("tokens") == 1


def test_a_weight_is_gathered_in_the_compute_dtype_and_its_gradient_scattered():
    """What travels to the layer is bfloat16, and the gradient lies where the weight does."""
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    place = jax.NamedSharding(mesh, spec(("embed", "mlp")))
    weight = jax.device_put(jnp.arange(8 * 4, dtype=jnp.float32).reshape(8, 4), place)

    def use(weight):
        whole = gather(weight, ("embed", "mlp"), jnp.bfloat16)
        return jnp.sum(whole.astype(jnp.float32) ** 2), whole

    with jax.set_mesh(mesh):
        (_, whole), grad = jax.jit(jax.value_and_grad(use, has_aux=True))(weight)
    assert whole.dtype == jnp.bfloat16 and whole.sharding.spec == PartitionSpec(None, "tensor")
    assert grad.sharding.is_equivalent_to(place, 2)
    np.testing.assert_array_equal(grad, 2 * np.asarray(weight))
