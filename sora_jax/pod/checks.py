"""What arithmetic can refuse before anything is compiled."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from sora_jax.pod.chips import CHIPS, GIB, Slice
from sora_jax.pod.sizes import Sizes
from sora_jax.sharding import MESH_AXES, RULES

STATE = ("parameters", "frozen", "EMA", "optimizer")


def batch_ways(mesh: Mapping[str, int]) -> int:
    """In how many parts a mesh splits a batch."""
    return math.prod(mesh[axis] for axis in RULES["batch"])


def check_division(sizes: Sizes, mesh: Mapping[str, int], clips: int) -> None:
    """Clips and heads that the mesh must divide; places of tokens are filled up where it does not.

    Raises:
      ValueError: it does not.
    """
    ways = batch_ways(mesh)
    if clips < 1 or clips % ways:
        raise ValueError(
            f"a batch of {clips} clips cannot be split over {'x'.join(RULES['batch'])} = {ways}; "
            f"the nearest is --batch={max(1, round(clips / ways)) * ways}"
        )
    if sizes.dit is None:
        return
    places = math.prod(sizes.dit.grid(sizes.latents[:3])[1:])
    ways = math.prod(mesh[axis] for axis in RULES["tokens"])
    filled = -(-places // ways) * ways
    if filled > 1.25 * places:
        best = max(n for n in range(1, ways) if -(-places // n) * n <= 1.25 * places)
        raise ValueError(
            f"{places} places of a frame of bucket {sizes.bucket} would be filled up to {filled} "
            f"for context = {ways}, much of it work for nothing; set --config.mesh.context={best}"
        )
    heads = RULES["activation_heads"]
    _check(sizes.dit.heads, "heads", "of the transformer", mesh, heads)


def _check(count: int, what: str, of: str, mesh: Mapping[str, int], axes: tuple[str, ...]) -> None:
    ways = math.prod(mesh[axis] for axis in axes)
    if count % ways:
        best = max(n for n in range(1, ways) if count % n == 0)
        raise ValueError(
            f"{count} {what} {of} cannot be split over {'x'.join(axes)} = {ways}; the most below "
            f"is {best}: set --config.mesh.{axes[0]}={best}"
        )


def bytes_a_chip(tree: Any, mesh: Mapping[str, int] | None = None) -> int:
    """Bytes of arrays on one chip, without padding.

    Args:
      tree: of ShapeDtypeStructs with named shardings.
      mesh: sizes of the axes in place of those of the shardings.

    Raises:
      ValueError: a dimension that the axes do not divide.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        sizes = leaf.sharding.mesh.shape if mesh is None else mesh
        total += leaf.dtype.itemsize * math.prod(_local_shape(leaf.shape, leaf.sharding, sizes))
    return total


def host_bytes(tree: Any, mesh: Mapping[str, int] | None = None) -> int:
    """Bytes a chip of the arrays that lie in its host's memory; arguments as `bytes_a_chip`."""
    leaves = jax.tree.leaves(tree)
    return bytes_a_chip([x for x in leaves if "host" in (x.sharding.memory_kind or "")], mesh)


def _local_shape(
    shape: tuple[int, ...], sharding: NamedSharding, mesh: Mapping[str, int]
) -> list[int]:
    local = list(shape)
    for index, axes in enumerate(sharding.spec):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        ways = math.prod(mesh[axis] for axis in axes)
        if local[index] % ways:
            raise ValueError(f"a dimension of {local[index]} cannot be split over {axes} = {ways}")
        local[index] //= ways
    return local


def check_state(kinds: Mapping[str, Any], topology: Slice, mesh: Mapping[str, int]) -> None:
    """Refuses a plan whose parameters, their average and the optimizer alone exceed the memory.

    Args:
      kinds: arrays of `programs.Work`.
      topology: what is planned for.
      mesh: sizes of its axes.

    Raises:
      ValueError: they do; it names the nearest plan where they do not.
    """
    state = [kinds[name] for name in STATE if name in kinds]
    needed = bytes_a_chip(state, mesh) - host_bytes(state, mesh)
    limit = topology.chip.hbm * GIB
    if needed <= limit:
        return
    raise ValueError(
        f"parameters and optimizer alone take {needed / GIB:.1f} GiB a chip, and {topology} has "
        f"{topology.chip.hbm} GiB; {_remedy(state, topology, mesh)}"
    )


def _remedy(state: Any, topology: Slice, mesh: Mapping[str, int]) -> str:
    held = {axis: mesh[axis] for axis in ("context", "tensor")}
    kinds = sorted(CHIPS, key=lambda kind: (kind != topology.kind, CHIPS[kind].hbm))
    others = [Slice(kind, shape) for kind in kinds for shape in CHIPS[kind].slices]
    for other in (topology, *others):
        for fsdp in _divisors(other.chips // math.prod(held.values())):
            plan = {"data": other.chips // math.prod(held.values()) // fsdp, "fsdp": fsdp, **held}
            if math.prod(plan.values()) != other.chips:
                continue
            try:
                fits = bytes_a_chip(state, plan) < 0.8 * other.chip.hbm * GIB
            except ValueError:
                continue
            if fits:
                flags = " ".join(f"--config.mesh.{axis}={plan[axis]}" for axis in MESH_AXES)
                return f"the nearest that leaves room is --topology={other} {flags}"
    return "no slice has room for it: make the network smaller, or split it over tensor"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
