"""Looks for the mesh and the remat of a training run on a slice.

Arithmetic discards what cannot be, a guess ranks the rest, and the compiler judges the config's own
and the few best.
"""

import collections
import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from sora_jax.models.remat import REMAT
from sora_jax.pod.checks import batch_ways, bytes_a_chip, check_division
from sora_jax.pod.chips import GIB, Slice
from sora_jax.pod.compiling import Plan, compile_plan, plan_mesh, trace
from sora_jax.pod.estimate import LINKS
from sora_jax.pod.programs import Work, make_task
from sora_jax.pod.report import make_report, needed_gib
from sora_jax.pod.sizes import Sizes, default_batch, read_sizes
from sora_jax.sharding import MESH_AXES, RULES

MESHES = (
    4  # that are compiled and fit, the config's own, and others with the remat of the best guess
)
TRIES = 8  # plans compiled at most; those that the meshes leave are other remats of the best one
PRODUCTS = 0.5  # of the peak, in the guess

logger = logging.getLogger("sora_jax")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a remat.

    Attributes:
      mesh: size of each of MESH_AXES.
      remat: a key of `models.remat.REMAT`, or "" for a network without.
      bound: bytes a chip that it takes at the least.
      guess: seconds of a step, for ranking only.
    """

    mesh: dict[str, int]
    remat: str
    bound: float
    guess: float

    def __str__(self) -> str:
        mesh = " ".join(f"{axis} {size}" for axis, size in self.mesh.items())
        return f"{mesh}, {self.remat}" if self.remat else mesh


def search(
    config: ConfigDict, topology: Slice, bucket: str | None, clips: int | None
) -> dict[str, Any]:
    """Prints a table of what was compiled, and what it recommends.

    Args:
      config: of `train.py`; where its own mesh and remat can be, they are compiled first.
      topology: the slice.
      bucket: FRAMESxHEIGHTxWIDTH, or None for the largest of the config.
      clips: of the global batch; None for the config's, a multiple of the chips.

    Returns:
      {"candidates": reports, "best": one of them, or None}, as JSON values.

    Raises:
      ValueError: nothing is left to compile.
    """
    sizes = read_sizes(config, bucket)
    clips = clips or default_batch(config, sizes, topology.chips)
    ranked = rank(config, topology, sizes, clips)
    reports: list[dict[str, Any]] = []
    limit = float("inf")
    closed: list[dict[str, int]] = []  # meshes that have their plan, or end the compiler

    def judge(candidate: Candidate) -> None:
        nonlocal limit
        plan = _plan(config, candidate, topology, sizes, clips)
        try:
            mesh = plan_mesh(plan.config, topology)
        except ValueError as error:
            logger.info("left out: %s", error)
            closed.append(candidate.mesh)
            return
        work = trace(plan, mesh)
        result = compile_plan(plan, str(candidate))
        report = make_report(plan, mesh.shape, work, result)
        report |= {"bound_bytes": candidate.bound, "guess_seconds": candidate.guess}
        reports.append(report)
        if not report["fits"] and "HBM" in report.get("error", "HBM"):
            limit = candidate.bound  # what takes as much at the least will not fit either
        else:
            closed.append(candidate.mesh)

    def best() -> dict[str, Any] | None:
        fitting = [report for report in reports if report["fits"]]
        return min(fitting, key=lambda report: report["seconds"]["step"], default=None)

    for candidate in _own(config, topology, ranked) + ranked:
        if len(reports) == TRIES or sum(report["fits"] for report in reports) == MESHES:
            break
        if candidate.bound < limit and candidate.mesh not in closed:
            judge(candidate)
    first = best()
    others = [
        candidate
        for candidate in ranked
        if first and candidate.mesh == first["mesh"] and candidate.remat != first["remat"]
    ]
    for candidate in others:
        if len(reports) < TRIES and candidate.bound < limit:
            judge(candidate)
    print(table(reports))
    print(_advice(best()))
    return {"candidates": reports, "best": best()}


def _own(config: ConfigDict, topology: Slice, ranked: list[Candidate]) -> list[Candidate]:
    """The config's own among the candidates, if it is one."""
    try:
        mesh = dict(plan_mesh(config, topology).shape)
    except ValueError:
        return []
    remat = config.get("remat", "")
    return [one for one in ranked if one.mesh == mesh and one.remat in ("", remat)]


def rank(config: ConfigDict, topology: Slice, sizes: Sizes, clips: int) -> list[Candidate]:
    """Every mesh and remat that arithmetic allows, the best guess first.

    Raises:
      ValueError: it allows none.
    """
    reference = {**dict.fromkeys(MESH_AXES, 1), "data": topology.chips}
    plan = _plan(config, Candidate(reference, "", 0.0, 0.0), topology, sizes, clips)
    work = trace(plan, plan_mesh(plan.config, topology))
    remats = list(REMAT) if sizes.dit else [""]
    saved = {
        remat: saved_bytes(_with(config, remat=remat), sizes, work.arguments) for remat in remats
    }
    most = max(saved.values())
    reasons: collections.Counter[str] = collections.Counter()
    found = []
    for mesh in meshes(topology.chips):
        try:
            check_division(sizes, mesh, clips)
            held = {name: bytes_a_chip(tree, mesh) for name, tree in work.kinds.items()}
        except ValueError:
            reasons["that do not divide"] += len(remats)
            continue
        for remat in remats:
            kept = saved[remat] / batch_ways(mesh) / mesh["context"]
            # Of the gradients and what is saved, the one is whole when the other is gone.
            bound = sum(held.values()) + max(held["parameters"], kept)
            if bound > topology.chip.hbm * GIB:
                reasons["for want of memory"] += 1
                continue
            again = 1.0 - saved[remat] / most
            guess = _guess(work, sizes, topology, mesh, clips, again, held["parameters"])
            found.append(Candidate(mesh, remat, bound, guess))
    total = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if not found:
        raise ValueError(
            f"no mesh of {topology} can train {clips} clips of {sizes.bucket}: {total}; try "
            "another --topology or --batch"
        )
    logger.info("%d plans are left; discarded: %s", len(found), total or "none")
    return sorted(found, key=lambda one: one.guess)


def meshes(chips: int) -> Iterator[dict[str, int]]:
    """All meshes of so many chips."""
    divisors = [n for n in range(1, chips + 1) if chips % n == 0]
    for data, fsdp, context in itertools.product(divisors, repeat=3):
        if chips % (data * fsdp * context) == 0:
            sizes = (data, fsdp, context, chips // (data * fsdp * context))
            yield dict(zip(MESH_AXES, sizes))


def saved_bytes(config: ConfigDict, sizes: Sizes, arguments: tuple) -> int:
    """Bytes on all chips together that a backward pass finds on the devices, but parameters.

    Args:
      config, sizes: of the run.
      arguments: of its train step.
    """
    task = make_task(config, sizes)

    def backward(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        return jax.vjp(lambda params: task.loss(params, frozen, batch, key)[0], params)[1]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    inputs = (shapes[0].params, *shapes[1:])
    saved = collections.Counter(
        (x.shape, x.dtype)
        for x in jax.make_jaxpr(backward)(*inputs).out_avals
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        and x.memory_space != jax.memory.Space.Host
    )
    saved -= collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves(inputs))
    return sum(count * math.prod(shape) * dtype.itemsize for (shape, dtype), count in saved.items())


def table(reports: list[dict[str, Any]]) -> str:
    """What was compiled, in lines."""
    lines = [f"{'mesh':<44}{'remat':<12}{'GiB a chip':>12}{'step s':>10}{'MFU':>8}"]
    for report in reports:
        mesh = " ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
        if "error" in report:
            lines.append(f"{mesh:<44}{report['remat']:<12}{report['error'][:60]}")
            continue
        step = report["seconds"]["step"]
        misfit = "" if report["fits"] else "  does not fit"
        lines.append(
            f"{mesh:<44}{report['remat']:<12}{needed_gib(report):12.2f}{step:10.4g}{report['mfu']:8.1%}{misfit}"
        )
    return "\n".join(lines)


def _advice(best: dict[str, Any] | None) -> str:
    if best is None:
        return "none of these fits: try a larger slice, or a smaller --batch"
    flags = [f"--config.mesh.{axis}={size}" for axis, size in best["mesh"].items()]
    if best["remat"]:
        flags.append(f"--config.remat={best['remat']}")
    return "recommended: " + " ".join(flags)


def _plan(
    config: ConfigDict, candidate: Candidate, topology: Slice, sizes: Sizes, clips: int
) -> Plan:
    changes = {"mesh": ConfigDict(candidate.mesh)}
    if candidate.remat:
        changes["remat"] = candidate.remat
    return Plan(_with(config, **changes), topology, sizes, clips, "train")


def _with(config: ConfigDict, **changes: Any) -> ConfigDict:
    """A copy of the config with other values; an empty one changes nothing."""
    changed = {name: value for name, value in changes.items() if value}
    return ConfigDict({**config, **changed})


def _guess(
    work: Work,
    sizes: Sizes,
    topology: Slice,
    mesh: dict[str, int],
    clips: int,
    again: float,
    parameters: int,
) -> float:
    """Seconds of a step, roughly: products, and what goes over the links.

    Args:
      work, sizes, topology, mesh, clips: of the plan.
      again: the share of a forward pass that the backward pass computes again.
      parameters: bytes of them on a chip.
    """
    flops = work.flops * (3.0 + again) / 3.0
    products = flops / (topology.chips * topology.chip.peak * 1e12 * PRODUCTS)
    parts = math.prod(mesh[axis] for axis in RULES["embed"])
    # Gathered forward, backward, and their gradients scattered; gradients summed over replicas.
    links = 3.0 * parameters * parts * (parts > 1)
    links += 2.0 * parameters * (mesh["data"] > 1)
    if sizes.dit is not None:
        rows = clips / batch_ways(mesh) * sizes.tokens * sizes.dit.width * 2.0  # bytes, all tokens
        layers = sizes.dit.layers
        # Twelve exchanges of heads for tokens, half of the bytes either way round.
        links += layers * 6.0 * rows / mesh["tensor"] / mesh["context"] * (mesh["context"] > 1)
        # Where there are more chips than heads to exchange, keys and values go round a ring of
        # groups, and with their gradients on the way back.
        groups = mesh["context"] // math.gcd(mesh["context"], sizes.dit.heads // mesh["tensor"])
        links += layers * 6.0 * rows / mesh["tensor"] / mesh["context"] * (groups - 1)
        # A sum after attention and after the MLP, forward and backward.
        links += layers * 4.0 * 2.0 * rows / mesh["context"] * (mesh["tensor"] > 1)
    return products + links / LINKS
