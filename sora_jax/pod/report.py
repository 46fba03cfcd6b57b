"""What is printed about a plan, and written as JSON: one mapping, told in lines."""

import collections
from collections.abc import Mapping
from typing import Any

from sora_jax.pod.chips import GIB
from sora_jax.pod.collectives import Collective, collectives
from sora_jax.pod.compiling import Plan, Result
from sora_jax.pod.estimate import KERNEL_SHARE, estimate, utilization
from sora_jax.pod.hlo import Program
from sora_jax.pod.kernels import kernel_calls
from sora_jax.pod.memory import measure
from sora_jax.pod.products import product_flops
from sora_jax.pod.programs import Work

MORE = "docs/pod_numbers.md says how each number is made, and what it cannot know."


def make_report(plan: Plan, mesh: Mapping[str, int], work: Work, result: Result) -> dict[str, Any]:
    """All numbers of a plan, as JSON values.

    Raises:
      ValueError: the program calls a Pallas kernel whose operations are not known.
    """
    head = {
        "topology": str(plan.topology),
        "chips": plan.topology.chips,
        "mesh": dict(mesh),
        "remat": plan.config.remat if plan.config.task == "dit" else "",
        "work": plan.work,
        "clips": plan.clips,
        "compile_seconds": round(result.seconds, 1),
        "hbm_gib": plan.topology.chip.hbm,
        "analytic_flops": work.flops,
    }
    if result.error:
        return {**head, "fits": False, "error": result.error}
    program = Program(result.text)
    memory = measure(work, result, program)
    moved, calls = collectives(program), kernel_calls(program)
    seconds = estimate(program, moved, calls, plan.topology)
    in_kernels = sum(call.flops for call in calls)
    return {
        **head,
        "fits": memory.fits(plan.topology.chip.hbm * GIB),
        "memory_bytes": {
            "kinds": dict(memory.kinds),
            "saved_for_backward": memory.saved,
            "temporaries": memory.temporaries,
            "unaliased_outputs": memory.unaliased,
            "compiler_peak": memory.peak,
            "arguments_temporaries_outputs": memory.whole,
            "held_but_unread": memory.unread,
            "host": memory.host,
            "host_saved_for_backward": memory.host_saved,
        },
        "flops_a_chip": {
            "products": product_flops(program),
            "kernels": in_kernels,
            "cost_analysis": result.flops,
        },
        "kernels": [{**call._asdict(), "flops": call.flops} for call in calls],
        "collectives": _by_kind(moved),
        "unknown_loops": [loop.instruction.name for loop in program.loops if loop.trips is None],
        "seconds": {
            "compiler": seconds.compiler,
            "collectives": seconds.links,
            "kernels": seconds.kernels / KERNEL_SHARE,
            "step": seconds.step(),
            "step_kernels_at_peak": seconds.step(1.0),
        },
        "mfu": utilization(work.flops, seconds.step(), plan.topology),
        "mfu_kernels_at_peak": utilization(work.flops, seconds.step(1.0), plan.topology),
    }


def _by_kind(moved: list[Collective]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0, 0.0, 0.0])
    for one in moved:
        row = sums[one.kind, one.group]
        row[0] += one.count
        row[1] += one.count * one.bytes
        row[2] += one.link_bytes
        row[3] += one.link_bytes * one.overlapped
    names = ("kind", "group", "count", "bytes", "link_bytes", "overlapped_link_bytes")
    return [dict(zip(names, (*key, *row))) for key, row in sorted(sums.items())]


def needed_gib(report: Mapping[str, Any]) -> float:
    """GiB a chip that a plan takes: the compiler's peak, and what the run holds beside it."""
    memory = report["memory_bytes"]
    return (memory["compiler_peak"] + memory["held_but_unread"]) / GIB


def tell(report: Mapping[str, Any]) -> str:
    """The report in lines."""
    mesh = " ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    remat = f", remat {report['remat']}" if report["work"] == "train" and report["remat"] else ""
    lines = [
        f"{report['work']} on {report['topology']} ({report['chips']} chips), {mesh}{remat}, "
        f"{report['clips']} clips a batch",
    ]
    if "error" in report:
        return "\n".join([*lines, f"no plan: {report['error']}"])
    lines += [*_memory_lines(report), *_flops_lines(report), *_collective_lines(report)]
    lines += [*_time_lines(report), MORE]
    return "\n".join(lines)


def _memory_lines(report: Mapping[str, Any]) -> list[str]:
    memory, hbm = report["memory_bytes"], report["hbm_gib"]
    verdict = "fits" if report["fits"] else "does not fit"
    whole = memory["arguments_temporaries_outputs"] / GIB
    lines = [
        f"{verdict}: {needed_gib(report):.2f} of {hbm} GiB a chip; arguments, temporaries and "
        f"outputs that replace none add up to {whole:.2f}",
    ]
    for kind, count in memory["kinds"].items():
        lines.append(_row(kind, count))
    lines.append(_row("temporaries", memory["temporaries"]))
    lines.append(_row("  of them saved for backward", memory["saved_for_backward"]))
    lines.append(_row("outputs not aliased", memory["unaliased_outputs"]))
    if memory["held_but_unread"]:
        lines.append(_row("held, though the step does not read it", memory["held_but_unread"]))
    if memory["host"] or memory["host_saved_for_backward"]:
        lines.append(_row("in the host's memory, a chip", memory["host"]))
        lines.append(_row("  of them saved for backward", memory["host_saved_for_backward"]))
    return lines


def _row(name: str, count: float) -> str:
    return f"  {name:<40}{count / GIB:10.3f} GiB"


def _flops_lines(report: Mapping[str, Any]) -> list[str]:
    flops = report["flops_a_chip"]
    made = flops["products"] + flops["kernels"]
    useful = report["analytic_flops"] / report["chips"]
    lines = [
        f"operations a chip: {made / 1e12:.3f} TFLOP compiled, of them "
        f"{flops['kernels'] / 1e12:.3f} in kernels; {useful / 1e12:.3f} by arithmetic, ratio "
        f"{made / useful:.2f}",
    ]
    for call in report["kernels"]:
        sizes = f"{call['heads']} heads, {call['queries']} x {call['keys']} x {call['head_width']}"
        lines.append(
            f"  {call['count']} x {call['kind']}, {sizes}: {call['flops'] / 1e12:.3f} TFLOP"
        )
    return lines


def _collective_lines(report: Mapping[str, Any]) -> list[str]:
    lines = ["collectives a chip:" if report["collectives"] else "no collectives"]
    for row in report["collectives"]:
        overlapped = row["overlapped_link_bytes"] / row["link_bytes"] if row["link_bytes"] else 0.0
        lines.append(
            f"  {row['count']} x {row['kind']} of {row['group'] or 'all'}: "
            f"{row['bytes'] / GIB:.3f} GiB, {overlapped:.0%} with other work beside it"
        )
    return lines


def _time_lines(report: Mapping[str, Any]) -> list[str]:
    parts = report["seconds"]
    lines = [
        f"step {parts['step']:.4g} s = compiler {parts['compiler']:.4g} + collectives "
        f"{parts['collectives']:.4g} + kernels {parts['kernels']:.4g} at {KERNEL_SHARE:.0%} of "
        f"peak; {parts['step_kernels_at_peak']:.4g} s with kernels at peak",
        f"MFU {report['mfu']:.1%}; {report['mfu_kernels_at_peak']:.1%} with kernels at peak",
    ]
    if report["unknown_loops"]:
        names = ", ".join(report["unknown_loops"])
        lines.append(f"counted once, as their trips are not known: the loops {names}")
    return lines
