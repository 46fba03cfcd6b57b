"""What is read off real programs of the TPU compiler, which runs without a TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.pod.chips import CHIPS, Slice, devices
from sora_jax.pod.collectives import collectives
from sora_jax.pod.estimate import LINKS, estimate
from sora_jax.pod.hlo import Program
from sora_jax.pod.kernels import kernel_calls
from sora_jax.pod.products import product_flops
from sora_jax.sharding import make_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: libtpu is not installed"
)
TOPOLOGY = Slice("v6e", (2, 2))


@pytest.fixture(scope="module", autouse=True)
def flags():
    """The compiler, in this process, ends it for a flag of the CPU's, which has read its own."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        yield


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "tensor": 2}, devices(TOPOLOGY))


@pytest.fixture(scope="module")
def program(mesh):
    """Compiles a function of arrays, given as (shape, spec), for the mesh."""

    def make(function, *arguments, dtype=jnp.bfloat16):
        arrays = (
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
            for shape, spec in arguments
        )
        return Program(jax.jit(function).lower(*arrays).compile().as_text())

    return make


def test_only_the_data_axis_crosses_slices():
    several = devices(Slice("v6e", (2, 2), slices=2))
    mesh = make_mesh({"data": 4, "tensor": 2}, several)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (slices == slices[:, :1, :1, :1]).all() and set(slices.flat) == {0, 1}
    with pytest.raises(ValueError, match=r"data=1 is not a multiple of the 2 slices.*data=2"):
        make_mesh({"fsdp": 8}, several)


def test_an_axis_may_be_part_of_a_side_of_the_torus():
    assert make_mesh({"fsdp": 64, "context": 4}, devices(Slice("v6e", (16, 16)))).size == 256


@pytest.mark.parametrize("kind", CHIPS)
def test_every_slice_of_the_table_is_one_that_the_compiler_knows(kind):
    for shape in CHIPS[kind].slices:
        if len(shape) == 2 or max(shape) <= 8:
            one = Slice(kind, shape)
            assert len(devices(one)) == one.chips


def test_products_count_as_often_as_their_loop_runs(program):
    def repeat(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    found = program(repeat, ((256, 512), ()), ((512, 512), ()))
    assert [loop.trips for loop in found.loops] == [7]
    assert product_flops(found) == 7 * 2 * 256 * 512 * 512


def test_a_batch_of_products_is_not_counted_as_a_convolution(program):
    def scores(q, k):
        return jnp.einsum("bqd,bkd->bqk", q, k)

    found = program(scores, ((8, 256, 128), ("data",)), ((8, 384, 128), ("data",)))
    assert product_flops(found) == 2 * 4 * 256 * 384 * 128


def test_taps_in_the_padding_are_not_counted(program):
    def blur(x, w):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), [(1, 1), (0, 0)], dimension_numbers=dimensions
        )

    found = program(blur, ((2, 32, 32, 128), ()), ((3, 1, 128, 256), ()))
    taps = 3 * 32 - 2  # of a column; the first and the last row lack one
    assert product_flops(found) == 2 * 2 * taps * 32 * 128 * 256


def test_a_sum_over_chips_is_one_collective_of_its_group_and_bytes(program):
    found = program(lambda x, w: x @ w, ((512, 1024), ((), "tensor")), ((1024, 256), ("tensor",)))
    [one] = collectives(found)
    assert (one.kind, one.count, one.group) == ("all-reduce", 1, 2)
    assert one.bytes in (512 * 256 * 2, 512 * 256 * 4)  # summed in bfloat16 or float32
    assert one.link_bytes == 2 * one.bytes
    seconds = estimate(found, [one], [], TOPOLOGY)
    assert seconds.links == pytest.approx(2 * one.bytes / LINKS)
    assert seconds.compiler > 0
    assert seconds.step() == seconds.compiler + seconds.links


def attention(mesh, *, fused):
    """The gradients of splash attention of 2 heads, 256 queries and 512 keys."""
    names = ("block_q", "block_kv", "block_kv_compute")
    names += ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    names += () if fused else ("block_q_dq", "block_kv_dq")
    sizes = splash.BlockSizes(**dict.fromkeys(names, 128), use_fused_bwd_kernel=fused)
    mask = masks.MultiHeadMask([masks.FullMask((256, 512))] * 2)
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)

    def loss(q, k, v):
        def local(q, k, v):
            return jax.vmap(kernel)(q, k, v)

        spec = PartitionSpec("data", "tensor")
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
        return jnp.sum(jnp.square(mapped(q, k, v).astype(jnp.float32)))

    return jax.grad(loss, (0, 1, 2))


@pytest.mark.parametrize("fused", [False, True])
def test_every_kernel_of_attention_counts(program, mesh, fused):
    spec = ("data", "tensor")
    queries, keys = ((4, 4, 256, 128), spec), ((4, 4, 512, 128), spec)
    found = program(attention(mesh, fused=fused), queries, keys, keys)
    calls = kernel_calls(found)
    products = 2 * 2 * 256 * 512 * 128  # 2 clips and 2 heads a chip
    factors = {"forward": 4, "fused backward": 10} if fused else {"forward": 4}
    if not fused:
        factors |= {"backward of keys and values": 8, "backward of queries": 6}
    assert {call.kind: call.flops for call in calls} == {
        kind: factor * products for kind, factor in factors.items()
    }
    seconds = estimate(found, [], calls, TOPOLOGY)
    at_peak = sum(factors.values()) * products / 918e12
    assert seconds.step(0.5) - seconds.step(1.0) == pytest.approx(at_peak)


def test_an_unknown_kernel_is_refused_by_name(program, mesh):
    def add_one(x, out):
        out[...] = x[...] + 1

    def call(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(add_one, out_shape=shape, name="add_one")(x)

    everywhere = jax.shard_map(
        call, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False
    )
    with pytest.raises(ValueError, match=r"Pallas kernel 'add_one'.*pod/kernels.py"):
        kernel_calls(program(everywhere, ((256, 256), ())))
