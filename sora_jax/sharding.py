"""The device mesh and the one table that says which mesh axis splits which logical axis.

Models name logical axes; only this file knows the mesh. `data` replicates parameters, `fsdp`
splits them and the batch, `context` splits tokens, `tensor` splits heads and the MLP.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    # Activations.
    "batch": ("data", "fsdp"),
    "tokens": ("context",),
    "rows": ("context",),
    "activation_heads": ("tensor",),
    "activation_mlp": ("tensor",),
    # Parameters.
    "layers": (),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocabulary": ("tensor",),
    "conv_in": (),
    "conv_out": (),
}

# In more parts than this weights have too few rows each to be collected fast, and little is gained.
_WEIGHT_PARTS = 32

# By kind of chip, MiB of its vector memory that a program may take. v5p has 64 a core, v5e and v6e
# 128; compiled with, and not yet run.
_FAST_MEMORY = {"TPU v5": 64, "TPU v5p": 64, "TPU v5 lite": 96, "TPU v5e": 96, "TPU v6 lite": 96}


def make_mesh(
    shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices (or those given), axes in the order of MESH_AXES.

    Args:
      shape: size of each axis; those left out are 1. One may be -1: it takes what is left; or both
        `data` and `fsdp`: then weights are in at most 32 parts, and the rest goes to `data`.
        None puts every device on `fsdp`.
      devices: all of jax.devices() if None.

    Raises:
      ValueError: an unknown axis, sizes whose product is not the number of devices, or slices that
        another axis than `data` would have to cross.
    """
    devices = jax.devices() if devices is None else devices
    shape = dict(shape) if shape else {"fsdp": -1}
    unknown = sorted(set(shape) - set(MESH_AXES))
    if unknown:
        raise ValueError(f"mesh axis {unknown[0]!r} is unknown; use some of {MESH_AXES}")
    slices = 1
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = _fill({axis: shape.get(axis, 1) for axis in MESH_AXES}, len(devices), slices)
    if slices > 1:
        return _over_slices(sizes, slices, devices)
    # A mesh axis may be part of a side of the torus, such as 4 of 16.
    ordered = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(ordered, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def _fill(shape: dict[str, int], count: int, slices: int) -> list[int]:
    """Sizes of MESH_AXES whose product is `count`, with numbers in place of -1."""
    sizes, given = dict(shape), [size for size in shape.values() if size != -1]
    opened = [axis for axis in MESH_AXES if shape[axis] == -1]
    left = count // math.prod(given) if min(given, default=1) > 0 else 0
    if opened == ["data", "fsdp"]:
        most = max(1, _WEIGHT_PARTS // shape["context"])
        sizes["fsdp"] = max(n for n in range(1, most + 1) if left // slices % n == 0)
        sizes["data"] = left // sizes["fsdp"]
    elif len(opened) == 1:
        sizes[opened[0]] = left
    elif opened:
        raise ValueError(
            f"mesh {shape} leaves {', '.join(opened)} open (-1); fix all but one of them, or leave "
            "data and fsdp open"
        )
    if math.prod(sizes.values()) != count or min(sizes.values()) < 1:
        raise ValueError(
            f"mesh {shape} does not fill the {count} devices; choose sizes whose product is "
            f"{count}, or leave one axis -1"
        )
    return list(sizes.values())


def _over_slices(sizes: list[int], slices: int, devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of several slices: only `data`, whose gradients alone meet, crosses their network."""
    if sizes[0] % slices:
        raise ValueError(
            f"mesh axis data={sizes[0]} is not a multiple of the {slices} slices, and the other "
            f"axes must stay within one; choose data={slices}, and the rest for "
            f"{len(devices) // slices} devices"
        )
    within, across = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1]
    ordered = mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))


def spec(names: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names.

    Raises:
      ValueError: a name that is not in RULES, or two dimensions on one mesh axis.
    """
    used: set[str] = set()
    parts = []
    for name in names:
        if name is not None and name not in RULES:
            raise ValueError(f"logical axis {name!r} is not in RULES; known are {sorted(RULES)}")
        axes = RULES[name] if name is not None else ()
        if used & set(axes):
            raise ValueError(f"axes {tuple(names)} put two dimensions on mesh axis {axes}")
        used |= set(axes)
        parts.append(axes or None)
    return PartitionSpec(*parts)


def fitting_spec(names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """Like `spec`, for the mesh that is set, without the mesh axes that do not divide a dimension.

    What is left out is replicated: a single clip on a mesh for many is computed by all.
    """
    spec(names)  # raises
    sizes = _abstract_mesh().shape
    parts = []
    for name, size in zip(names, shape, strict=True):
        kept, ways = [], 1
        for axis in RULES[name] if name is not None else ():
            if sizes[axis] > 1 and size % (ways * sizes[axis]) == 0:
                kept.append(axis)
                ways *= sizes[axis]
        parts.append(tuple(kept) or None)
    return PartitionSpec(*parts)


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Asks the compiler to lay x out by its logical axes; does nothing where no mesh is set."""
    if not is_split():
        return x
    return jax.lax.with_sharding_constraint(x, fitting_spec(names, x.shape))


def gather(weight: jax.Array, names: Sequence[str | None], dtype: DTypeLike) -> jax.Array:
    """A weight as a layer uses it: in the compute dtype, and whole along "embed".

    That axis is split to save memory (ZeRO-3, arXiv 1910.02054). It is converted first, so that
    half as many bytes travel, and the gradient is scattered as soon as it is summed.
    """
    if not is_split():
        return weight.astype(dtype)
    return _gather(tuple(names), dtype, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(names, dtype, weight):
    return constrain(weight.astype(dtype), [None if n == "embed" else n for n in names])


def _gather_forward(names, dtype, weight):
    return _gather(names, dtype, weight), jnp.zeros((), weight.dtype)


def _gather_backward(names, dtype, like, grad):
    return (constrain(grad, names).astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def is_split() -> bool:
    """Whether a mesh of several devices is set."""
    return _abstract_mesh().size > 1


def ways(name: str) -> int:
    """Into how many parts the mesh that is set splits a logical axis."""
    sizes = _abstract_mesh().shape
    return math.prod(sizes[axis] for axis in RULES[name]) if is_split() else 1


def platform() -> str:
    """What the program is for, such as "cpu" or "tpu": that of the mesh, which need not be here."""
    device = _abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    return device.platform


def _abstract_mesh() -> AbstractMesh:
    return jax.sharding.get_abstract_mesh()


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of (boxed) abstract arrays, as `jax.eval_shape` of an init returns it.

    Leaves boxed by `nn.with_logical_partitioning` follow RULES, others are replicated.

    Raises:
      ValueError: a dimension that its mesh axes do not divide.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        if isinstance(leaf, nn.LogicallyPartitioned) and not hasattr(leaf.value, "shape"):
            return leaf.value  # a parameter that this part of an optimizer leaves to another
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else ()
        parts = spec(names)
        shape = leaf.value.shape if names else leaf.shape
        for size, name in zip(shape, names):
            ways, axes = 1, RULES[name] if name is not None else ()
            for axis in axes:
                ways *= mesh.shape[axis]
            if size % ways:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} has a dimension of {size} that mesh axes {axes} "
                    f"({ways} ways) do not divide; choose a mesh whose size divides it"
                )
        return NamedSharding(mesh, parts)

    return jax.tree_util.tree_map_with_path(
        one, tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options of the compiler for programs on a mesh, for `jax.jit`.

    With more of a TPU's fast memory than the 16 MiB that it has otherwise, a fusion with a matrix
    product works on larger blocks.
    """
    device = mesh.devices.flat[0]
    room = _FAST_MEMORY.get(device.device_kind) if device.platform == "tpu" else None
    return {"xla_tpu_scoped_vmem_limit_kib": str(room * 1024)} if room else None


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """The sharding of a batch array: its first dimension over the data axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"], *(None,) * (ndim - 1)))
