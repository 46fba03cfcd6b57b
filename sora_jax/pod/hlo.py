"""Reads the text of a compiled program: its instructions, and how often a step executes each.

The text is that of `jax.stages.Compiled.as_text()` for a TPU, in the order of its schedule.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1},
    **{"s16": 2, "u16": 2, "bf16": 2, "f16": 2},
    **{"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
_ARRAY = re.compile(r"\b(" + "|".join(BYTES) + r")\[([0-9,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"  +(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_COMMENT = re.compile(r"/\*.*?\*/")


class Array(NamedTuple):
    """One array of a type.

    Attributes:
      dtype: HLO's name of it, a key of BYTES.
      shape: local to a chip.
      on_host: whether it lies in the host's memory.
    """

    dtype: str
    shape: tuple[int, ...]
    on_host: bool

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


def arrays(text: str) -> list[Array]:
    """All arrays that a piece of HLO names, such as those of a tuple type."""
    return [
        Array(dtype, tuple(int(n) for n in shape.split(",") if n), "S(5)" in layout)
        for dtype, shape, layout in _ARRAY.findall(text)
    ]


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name, opcode: as the text has them.
      type: of the result.
      operands: names of the instructions that it takes.
      attributes: the rest of the text.
    """

    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found.group(1)) if found else 0

    @property
    def source(self) -> str:
        """Where in the traced program it is from, a path of names."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    @property
    def is_kernel(self) -> bool:
        """Whether it is a call of a Pallas kernel."""
        return self.opcode == "custom-call" and '"tpu_custom_call"' in self.attributes


class Execution(NamedTuple):
    """An instruction that runs `count` times a step, at a place of a computation's schedule."""

    instruction: Instruction
    count: int
    computation: str
    place: int


class Loop(NamedTuple):
    """A while loop: its instruction, trips each time, times it runs; trips None if unknown."""

    instruction: Instruction
    trips: int | None
    count: int


class Program:
    """A parsed module.

    Attributes:
      computations: instructions by computation, in the order of the schedule.
      executions: what a step executes, without the ends of asynchronous pairs.
      loops: of the step, outermost first.

    Raises:
      ValueError: the text is not that of an optimized module.
    """

    def __init__(self, text: str):
        self.computations, entry = _parse(text)
        if entry is None:
            raise ValueError("the text has no ENTRY computation: give that of a compiled program")
        self._all = {i.name: i for body in self.computations.values() for i in body}
        self.executions: list[Execution] = []
        self.loops: list[Loop] = []
        self._walk(entry, 1)

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that makes an operand."""
        return self._all[instruction.operands[index]]

    def inside(self, instruction: Instruction) -> Sequence[Instruction]:
        """What a fusion, or the start of an asynchronous computation, consists of."""
        if instruction.opcode not in ("fusion", "async-start"):
            return ()
        return self.computations.get(instruction.called("calls"), ())

    def _walk(self, computation: str, count: int) -> None:
        for place, one in enumerate(self.computations[computation]):
            if one.opcode == "while":
                trips = self._trips(one)
                self.loops.append(Loop(one, trips, count))
                self._walk(one.called("body"), count * (1 if trips is None else trips))
            elif one.opcode == "conditional":
                # One branch runs; the last is what a predicate that holds takes.
                branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
                names = (
                    branches.group(1).split(",") if branches else [one.called("true_computation")]
                )
                self._walk(names[-1].strip().lstrip("%"), count)
            elif one.opcode == "call":
                self._walk(one.called("to_apply"), count)
            elif not one.opcode.endswith("-done") and one.opcode != "async-update":
                self.executions.append(Execution(one, count, computation, place))

    def _trips(self, loop: Instruction) -> int | None:
        known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations.get(loop.called("condition"), ())
        limits = [number for one in condition if (number := self._number(one)) is not None]
        if not limits:
            return None
        return max(limits) - self._begins(loop, condition)

    def _begins(self, loop: Instruction, condition: Sequence[Instruction]) -> int:
        """Where a loop's counter starts: at 1 if the first trip was taken out of it."""
        counters = [
            int(found.group(1))
            for one in condition
            if one.opcode == "get-tuple-element"
            and (found := re.search(r"\bindex=(\d+)", one.attributes))
        ]
        start = self.operand(loop, 0)
        if len(counters) != 1 or start.opcode != "tuple":
            return 0
        return self._number(self.operand(start, counters[0])) or 0

    def _number(self, one: Instruction) -> int | None:
        """The value of a constant, or of a copy of one."""
        while one.opcode == "copy":
            one = self.operand(one, 0)
        found = re.match(r"\((\d+)\)", one.attributes) if one.opcode == "constant" else None
        return int(found.group(1)) if found else None


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str | None]:
    computations: dict[str, list[str]] = {}
    entry = current = None
    for line in text.splitlines():
        head = _COMPUTATION.match(line) if line.rstrip().endswith("{") else None
        if head:
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif line.rstrip() == "}":
            current = None
        elif current is not None and _INSTRUCTION.match(line):
            computations[current].append(line)
        elif current is not None and computations[current]:
            computations[current][-1] += line  # an attribute that goes on
    parsed = {name: [_instruction(one) for one in lines] for name, lines in computations.items()}
    return parsed, entry


def _instruction(line: str) -> Instruction:
    found = _INSTRUCTION.match(line)
    rest = line[found.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    rest = "(" + rest
    end = _closing(rest)
    operands = re.findall(r"%([\w.\-]+)", _COMMENT.sub("", rest[:end]))
    if opcode == "constant":  # whose number is what it has in place of operands
        return Instruction(found.group(1), opcode, type_, (), rest)
    return Instruction(found.group(1), opcode, type_, tuple(operands), rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis that the text begins with is closed."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")
