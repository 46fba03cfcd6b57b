"""Floating-point operations of the matrix products and convolutions of a compiled program.

`Compiled.cost_analysis` counts the body of a loop once; here it counts as often as it runs.
"""

import math
import re

from sora_jax.pod.hlo import Instruction, Program, arrays


def product_flops(program: Program) -> int:
    """Of one step on one chip, without Pallas kernels; a multiply-add is two."""
    total = 0
    for execution in program.executions:
        for one in (execution.instruction, *program.inside(execution.instruction)):
            if one.opcode == "convolution":
                total += execution.count * _convolution(program, one)
            elif one.opcode == "dot":
                total += execution.count * _dot(program, one)
    return total


def _shape(instruction: Instruction) -> tuple[int, ...]:
    return arrays(instruction.type)[0].shape


def _dot(program: Program, one: Instruction) -> int:
    left = _shape(program.operand(one, 0))
    axes = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", one.attributes).group(1)
    contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2 * math.prod(_shape(one)) * contracted


def _convolution(program: Program, one: Instruction) -> int:
    """A TPU's matrix products are convolutions too, some with a batch as a dilated window."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes).groups()
    data, kernel, out = (
        dict(zip(names, shape))
        for names, shape in zip(
            labels, (*(_shape(program.operand(one, i)) for i in (0, 1)), _shape(one))
        )
    )
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    window = _window(one.attributes)
    pairs = 1
    for axis in (name for name in labels[2] if name.isdigit()):
        pairs *= _valid_pairs(data[axis], kernel[axis], out[axis], window, int(axis))
    samples = out["b"] // (int(groups.group(1)) if groups else 1)
    return 2 * samples * out["f"] * kernel["i"] * pairs


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in found.group(1).split()) if found else {}
    return {name: value.split("x") for name, value in fields.items()}


def _valid_pairs(data: int, kernel: int, out: int, window: dict[str, list[str]], axis: int) -> int:
    """How many places of output and kernel meet an element of the data, not padding or a hole."""

    def number(name: str) -> int:
        return int(window[name][axis]) if name in window else 1

    stride, data_step, kernel_step = (number(n) for n in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    end = (data - 1) * data_step + 1
    count = 0
    for tap in range(kernel):
        offset = tap * kernel_step - low
        first = max(0, -(offset // stride))
        last = min(out - 1, (end - 1 - offset) // stride)
        if data_step == 1:
            count += max(0, last - first + 1)
        else:
            count += sum((i * stride + offset) % data_step == 0 for i in range(first, last + 1))
    return count
