"""The collectives of a compiled program: bytes, groups, and which run beside other work."""

import math
import re
from typing import NamedTuple

from sora_jax.pod.hlo import Execution, Instruction, Program, arrays

# Bytes that cross a chip's links for each byte of the result: an all-reduce is a reduce-scatter and
# an all-gather, and half of an all-to-all goes either way round a ring.
LINK_BYTES = {
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-reduce": 2.0,
    "all-to-all": 0.5,
    "collective-permute": 1.0,
    "ragged-all-to-all": 0.5,
    "collective-broadcast": 1.0,
}


class Collective(NamedTuple):
    """One collective instruction of a step.

    Attributes:
      kind: a key of LINK_BYTES.
      count: executions a step.
      bytes: of the result on one chip, each time.
      group: chips that take part together; 2 for a permutation, 0 for all.
      overlapped: whether other work is scheduled between its start and its end.
    """

    kind: str
    count: int
    bytes: int
    group: int
    overlapped: bool

    @property
    def link_bytes(self) -> float:
        """Bytes over a chip's links in a step."""
        return self.count * self.bytes * LINK_BYTES[self.kind]


def collectives(program: Program) -> list[Collective]:
    """All of a step, in the order of the schedule."""
    found = []
    for execution in program.executions:
        one = execution.instruction
        for instruction in (one, *program.inside(one)):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in LINK_BYTES:
                continue
            found.append(
                Collective(
                    kind,
                    execution.count,
                    _payload(instruction),
                    _group(instruction),
                    _overlapped(program, execution),
                )
            )
            break
    return found


def _payload(instruction: Instruction) -> int:
    sizes = [x.bytes for x in arrays(instruction.type)]
    # The result of a start holds its operand, its result and counters.
    return max(sizes) if instruction.opcode.endswith("-start") else sum(sizes)


def _group(instruction: Instruction) -> int:
    text = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        return 2
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? ?\{([^}]*)\}", text)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named.group(2)))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]<=", text)
    if counted:
        return int(counted.group(1))
    listed = re.search(r"replica_groups=\{\{([^}]*)\}", text)
    return len(listed.group(1).split(",")) if listed else 0


def _overlapped(program: Program, execution: Execution) -> bool:
    """Whether something with cycles, or a kernel, stands between a start and its end."""
    one = execution.instruction
    if one.opcode == "fusion":  # one with a product; a reduce-scatter is a fusion without
        return any(inner.opcode in ("convolution", "dot") for inner in program.inside(one))
    if not one.opcode.endswith("-start"):
        return False
    for other in program.computations[execution.computation][execution.place + 1 :]:
        if one.name in other.operands:
            return False
        if other.cycles or other.is_kernel or other.opcode == "while":
            return True
    return False
