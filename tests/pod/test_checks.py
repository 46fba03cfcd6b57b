"""What arithmetic refuses before anything is compiled, and what it proposes instead."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import shapes_dit, wan
from sora_jax.models.dit_config import flops
from sora_jax.pod.checks import bytes_a_chip, check_division, check_state
from sora_jax.pod.chips import CHIPS, GIB, Slice, devices, read_slice
from sora_jax.pod.programs import sample_work, train_work
from sora_jax.pod.search import meshes
from sora_jax.pod.sizes import default_batch, read_sizes
from sora_jax.sharding import MESH_AXES, make_mesh


def mesh_of(**sizes):
    return {**dict.fromkeys(MESH_AXES, 1), **sizes}


@pytest.fixture
def config():
    return shapes_dit.get_config()


def test_names_of_slices():
    assert read_slice("v5p:4x4x8") == Slice("v5p", (4, 4, 8))
    assert read_slice("v6e:16x16").chips == 256
    assert str(Slice("v5e", (2, 4))) == "v5e:2x4"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("v5p", "KIND:SHAPE"),
        ("v9:2x2", "'v9' is not one of"),
        ("v5p:4x4x9", "nearest is v5p:4x4x8"),
        ("v5p:2x2", "nearest is v5p:2x2x1"),
        ("v6e:32x32", "nearest is v6e:16x16"),
        ("v6e:0x2", "nearest is v6e:1x1"),
    ],
)
def test_a_slice_that_does_not_exist(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        read_slice(name)


@pytest.mark.parametrize(
    ("mesh", "clips", "message"),
    [
        (mesh_of(data=2, fsdp=4), 12, r"12 clips .* = 8; the nearest is --batch=16"),
        (mesh_of(data=2), 0, r"0 clips .*--batch=2"),
        (mesh_of(context=16), 4, r"24 places .* filled up to 32 .*--config.mesh.context=15"),
        (mesh_of(tensor=3), 4, r"4 heads .* = 3; .*--config.mesh.tensor=2"),
    ],
)
def test_what_does_not_divide(config, mesh, clips, message):
    with pytest.raises(ValueError, match=message):
        check_division(read_sizes(config, "17x64x96"), mesh, clips)


def test_what_divides_passes(config):
    sizes = read_sizes(config, "17x64x96")
    assert sizes.tokens == 5 * 4 * 6  # of Wan's VAE, as there is no folder
    check_division(sizes, mesh_of(data=2, fsdp=2, context=7, tensor=4), 8)  # places are filled up


@pytest.mark.parametrize("bucket", ["17x64", "17x64x0", "a", "16x64x64", "17x60x64"])
def test_a_bucket_that_is_none(config, bucket):
    with pytest.raises(ValueError, match=r"--bucket|frames|height"):
        read_sizes(config, bucket)


def test_the_batch_is_that_of_the_config_in_whole_shares(config):
    sizes = read_sizes(config, "17x64x96")
    assert default_batch(config, sizes, 1) == 12
    assert default_batch(config, sizes, 8) == 8
    assert default_batch(config, sizes, 32) == 32


def test_the_largest_bucket_is_planned(config):
    assert str(read_sizes(config, None).bucket) == "33x64x96"


def array(*shape, spec):
    sharding = NamedSharding(make_mesh({"fsdp": 2, "tensor": 4}), PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_bytes_of_a_chip_are_its_share():
    tree = {"a": array(8, 16, spec=("fsdp", "tensor")), "b": array(10, spec=())}
    assert bytes_a_chip(tree) == 4 * (8 * 16 // 8 + 10)
    assert bytes_a_chip(tree, mesh_of(fsdp=8)) == 4 * (8 * 16 // 8 + 10)
    assert bytes_a_chip(tree, mesh_of(tensor=2)) == 4 * (8 * 16 // 2 + 10)
    with pytest.raises(ValueError, match="8 cannot be split"):
        bytes_a_chip(tree, mesh_of(fsdp=3))


def test_a_lora_run_holds_the_model_once_in_bfloat16_and_a_state_of_adapters():
    config = wan.get_config("1.3b")
    mesh = make_mesh({"fsdp": 4, "context": 2})
    sizes = read_sizes(config, "81x480x832")
    whole = train_work(config, sizes, mesh, 4)
    config.lora.rank = 16
    kinds = train_work(config, sizes, mesh, 4).kinds
    held = {name: bytes_a_chip(tree) for name, tree in kinds.items()}
    assert 2 * held["frozen"] == bytes_a_chip(whole.kinds["parameters"])
    assert held["parameters"] == held["EMA"] and 0 < held["parameters"] < held["frozen"] / 5
    assert held["optimizer"] < 2.01 * held["parameters"]


def test_a_state_beyond_the_memory_gets_a_plan_that_has_room():
    size = 2**24
    kinds = {"parameters": array(1024, size, spec=("fsdp", None))}  # 64 GiB in all
    topology = Slice("v6e", (2, 2))
    check_state(kinds, topology, mesh_of(fsdp=4))
    with pytest.raises(ValueError, match=r"64.0 GiB a chip.*--topology=v6e:2x2 .*fsdp=4"):
        check_state(kinds, topology, mesh_of(data=4))
    with pytest.raises(ValueError, match=r"64.0 GiB a chip.*--topology=v6e:2x2 "):
        check_state(kinds, Slice("v6e", (1, 1)), mesh_of())
    assert CHIPS["v6e"].hbm * GIB > bytes_a_chip(kinds, mesh_of(fsdp=4))


def test_all_meshes_fill_the_slice():
    found = list(meshes(8))
    assert len(found) == 20  # ways to share out three factors of two over four axes
    assert all(a["data"] * a["fsdp"] * a["context"] * a["tensor"] == 8 for a in found)


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "sora_jax\[tpu\]"'):
        devices(Slice("v6e", (1, 1)))


def test_sampling_and_training_with_images_are_planned_with_them(config):
    with config.unlocked():
        config.dit.update(image_channels=20, image_width=32)
    sizes = read_sizes(config, "17x64x96")
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    work = sample_work(config, sizes, mesh, 4)
    with jax.set_mesh(mesh):
        made = jax.eval_shape(work.step, *work.arguments)
    assert made.shape == (4, *sizes.latents)
    once = flops(sizes.dit, 5 * 4 * 6, sizes.words, 5, 257)
    assert work.flops == 2 * 4 * once
    work = train_work(config, sizes, mesh, 4)
    with jax.set_mesh(mesh):
        _, metrics = jax.eval_shape(work.step, *work.arguments)
    assert metrics["loss"].shape == () and work.flops == 3 * 4 * once
