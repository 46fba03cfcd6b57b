"""Seconds of a step by one convention, so that plans can be compared.

The compiler's cycles outside of kernels, then all collectives with nothing beside them, then the
kernels' operations at a share of the chip's peak. docs/pod_numbers.md says what that leaves out.
"""

import dataclasses

from sora_jax.pod.chips import Slice
from sora_jax.pod.collectives import Collective
from sora_jax.pod.hlo import Program
from sora_jax.pod.kernels import KernelCall

LINKS = 180e9  # bytes a second and chip that collectives reach
KERNEL_SHARE = 0.55  # of the peak that attention kernels reach


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step.

    Attributes:
      compiler: cycles of all but kernels.
      links: collectives.
      kernels: at the chip's full peak.
    """

    compiler: float
    links: float
    kernels: float

    def step(self, share: float = KERNEL_SHARE) -> float:
        """The whole, with the kernels at a share of the peak."""
        return self.compiler + self.links + self.kernels / share


def estimate(
    program: Program, moved: list[Collective], calls: list[KernelCall], topology: Slice
) -> Estimate:
    """The estimate of a program from its instructions, collectives and kernel calls."""
    cycles = sum(one.count * one.instruction.cycles for one in program.executions)
    return Estimate(
        cycles / (topology.chip.clock * 1e9),
        sum(one.link_bytes for one in moved) / LINKS,
        sum(call.flops for call in calls) / (topology.chip.peak * 1e12),
    )


def utilization(flops: float, seconds: float, topology: Slice) -> float:
    """The share of the slice's peak that useful operations are (MFU)."""
    return flops / (seconds * topology.chips * topology.chip.peak * 1e12)
