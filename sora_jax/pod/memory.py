"""Where the bytes of a compiled step are: arguments by kind, what is saved, what is on the host."""

import dataclasses
import re
from collections.abc import Mapping

import jax

from sora_jax.pod.checks import bytes_a_chip, host_bytes
from sora_jax.pod.compiling import Result
from sora_jax.pod.hlo import Array, Instruction, Program, arrays
from sora_jax.pod.programs import Work


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a chip.

    Attributes:
      kinds: arguments on the chip by what they are, by arithmetic, without padding.
      saved: what the loops over blocks keep for the backward pass, a part of `temporaries`.
      temporaries, unaliased: by the compiler; outputs that take the place of no argument.
      peak: the compiler's own, of what the program reads and makes.
      whole: arguments, temporaries and unaliased outputs, added up.
      unread: arguments that the run holds and the program does not read, in neither of the two.
      host: in the host's memory, for each chip.
      host_saved: what of `saved` is there.
    """

    kinds: Mapping[str, int]
    saved: int
    temporaries: int
    unaliased: int
    peak: int
    whole: int
    unread: int
    host: int
    host_saved: int

    def fits(self, hbm: float) -> bool:
        """Whether the compiler's peak and what else the run holds are at most `hbm` bytes."""
        return self.peak + self.unread <= hbm


def measure(work: Work, result: Result, program: Program) -> Memory:
    """The memory of a plan that compiled."""
    found = result.memory
    leaves = jax.tree.leaves(work.arguments, is_leaf=lambda x: x is None)
    unaliased = found["output_size_in_bytes"] - found["alias_size_in_bytes"]
    temporaries = found["temp_size_in_bytes"]
    whole = found["argument_size_in_bytes"] + temporaries + unaliased
    host = (
        sum(found[f"host_{name}_size_in_bytes"] for name in ("argument", "temp", "output"))
        - found["host_alias_size_in_bytes"]
    )
    saved = _saved(program)
    return Memory(
        {name: bytes_a_chip(tree) - host_bytes(tree) for name, tree in work.kinds.items()},
        sum(x.bytes for x in saved if not x.on_host),
        temporaries,
        unaliased,
        # Where something is offloaded, the compiler's peak counts the host's memory as well.
        min(found.get("peak_memory_in_bytes", 0) or whole, whole),
        whole,
        bytes_a_chip([leaves[index] for index in result.unread]),
        host,
        sum(x.bytes for x in saved if x.on_host),
    )


def _saved(program: Program) -> list[Array]:
    """Arrays that forward loops of the step fill, a slice each trip."""
    return [
        array
        for loop in program.loops
        if loop.count == 1 and loop.trips and _is_forward(loop.instruction)
        for array in _filled(program, loop.instruction, loop.trips)
    ]


def _is_forward(loop: Instruction) -> bool:
    return "jvp(" in loop.source and "transpose(" not in loop.source


def _filled(program: Program, loop: Instruction, trips: int) -> list[Array]:
    body = program.computations[loop.called("body")]
    made = {one.name: one for one in body}
    result = []
    for index, (name, array) in enumerate(zip(body[-1].operands, arrays(loop.type))):
        one = made[name]
        handed_on = one.opcode == "get-tuple-element" and re.match(
            rf"\W*index={index}\b", one.attributes
        )
        if array.shape[:1] == (trips,) and not handed_on:
            result.append(array)
    return result
