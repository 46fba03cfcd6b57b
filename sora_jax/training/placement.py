"""Which rows of a batch a host reads, and how they and fixed arrays come onto the devices.

The mesh decides: a batch is split over its data axes alone, so hosts whose devices differ only in
`context` or `tensor` hold the same rows, and each of them must read them.
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.sharding import batch_sharding, tree_shardings


@dataclasses.dataclass(frozen=True)
class BatchSplit:
    """How the devices of a mesh share a batch.

    Attributes:
      ways: equal parts that a batch is cut into.
      parts: numbers of those that devices of this host hold, ascending.
      multiple: clips that the size of each batch is a multiple of. A run keeps it on another mesh,
        so that its batches stay the same.
    """

    ways: int = 1
    parts: tuple[int, ...] = (0,)
    multiple: int = 1


@functools.cache
def split_of(mesh: Mesh) -> BatchSplit:
    """The split of a mesh over the devices of all hosts."""
    sharding = batch_sharding(mesh, 1)
    ways = int(np.prod([mesh.shape[axis] for axis in sharding.spec[0]]))
    held = sharding.addressable_devices_indices_map((ways,)).values()
    # A slice over the whole of a dimension has no start.
    parts = tuple(sorted({rows.start or 0 for (rows,) in held}))
    return BatchSplit(ways, parts, multiple=ways)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's parts of a batch as global arrays, split over the data axes of the mesh.

    Args:
      batch: arrays [b len(parts) / ways, ...] of the parts that `split_of(mesh)` says.
      mesh: over the devices of all hosts.

    Returns:
      Arrays [b, ...].
    """
    split = split_of(mesh)

    def place(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] // len(split.parts) * split.ways, *x.shape[1:])
        return jax.make_array_from_process_local_data(batch_sharding(mesh, x.ndim), x, shape)

    return {name: place(x) for name, x in batch.items()}


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that all hosts have as global arrays, without comparing them.

    Args:
      tree: of arrays.
      shardings: shaped like it.
    """

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, shardings)


def place_frozen(tree: Any, mesh: Mesh) -> Any:
    """What a task does not train: leaves boxed with logical axes are split, others are whole."""
    return place(nn.meta.unbox(tree), tree_shardings(tree, mesh))


def gather(tree: Any, keep: bool) -> Any:
    """The whole arrays of a tree as numpy arrays, where `keep`; every host must call it.

    One array at a time is brought together on the devices, so that a tree that only fits in the
    memory of all of them needs room for its largest array alone.

    Args:
      tree: of global arrays.
      keep: whether this host wants them; None comes in the place of each where not.
    """

    def one(x: jax.Array) -> np.ndarray | None:
        if not x.is_fully_addressable:
            x = jax.block_until_ready(_whole(x.sharding.mesh)(x))
        return np.asarray(x) if keep else None

    return jax.tree.map(one, tree)


@functools.cache
def _whole(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
