"""A table and a plot of plans: python -m benchmarks.scaling PLOT.png PLAN.json...

The plans are what `python -m sora_jax.pod --json=PLAN.json` wrote, of one model on slices of
rising size. The plot needs matplotlib (`pip install "sora_jax[docs]"`).
"""

import json
import pathlib
import sys

from sora_jax.pod.chips import GIB
from sora_jax.pod.report import needed_gib

PARTS = ("compiler", "kernels", "collectives")


def main(plot: str, *plans: str) -> None:
    reports = [json.loads(pathlib.Path(plan).read_text()) for plan in plans]
    reports.sort(key=lambda report: report["chips"])
    print("| slice | chips | mesh | clips | GiB a chip | collectives, GiB | step | MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for one in reports:
        mesh = ", ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1)
        moved = sum(row["link_bytes"] for row in one["collectives"]) / GIB
        print(
            f"| {one['topology']} | {one['chips']} | {mesh} | {one['clips']} | "
            f"{needed_gib(one):.1f} | {moved:.0f} | "
            f"{one['seconds']['step']:.2f} s | {one['mfu']:.1%} |"
        )
    draw(plot, reports)


def draw(plot: str, reports: list[dict]) -> None:
    """Seconds of a step by their parts, over chips."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    below = [0.0] * len(reports)
    names = [f"{one['chips']}" for one in reports]
    for part in PARTS:
        heights = [one["seconds"][part] for one in reports]
        axes.bar(names, heights, bottom=below, label=part, width=0.6)
        below = [a + b for a, b in zip(below, heights)]
    for place, one in enumerate(reports):
        axes.annotate(f"{one['mfu']:.0%} MFU", (place, below[place]), ha="center", va="bottom")
    axes.set(xlabel="chips", ylabel="seconds a step", ylim=(0, 1.15 * max(below)))
    figure.legend(loc="outside right upper")
    figure.savefig(plot, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
