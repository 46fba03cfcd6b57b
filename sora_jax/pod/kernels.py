"""Floating-point operations of Pallas kernels, which the compiler cannot look into.

A kernel that is not known here is an error, never zero operations.
"""

import math
from typing import NamedTuple

from sora_jax.pod.hlo import Array, Execution, Instruction, Program, arrays

# Matrix products of a block of scores, twice each: forward has q k and p v; the backward pass
# recomputes q k, and has dp, dv and dk in the one kernel, dp and dq in the other.
FORWARD, KEYS_AND_VALUES, QUERIES, FUSED_BACKWARD = 4, 8, 6, 10


class KernelCall(NamedTuple):
    """Calls of one kernel in a step.

    Attributes:
      kind: "forward", "backward of keys and values", "backward of queries" or "fused backward".
      count: calls a step.
      heads, queries, keys, head_width: of one call on one chip, padding included.
    """

    kind: str
    count: int
    heads: int
    queries: int
    keys: int
    head_width: int

    @property
    def flops(self) -> int:
        """Of all calls of a step on one chip."""
        factors = {
            "forward": FORWARD,
            "backward of keys and values": KEYS_AND_VALUES,
            "backward of queries": QUERIES,
            "fused backward": FUSED_BACKWARD,
        }
        scores = self.heads * self.queries * self.keys
        return self.count * factors[self.kind] * scores * self.head_width


def kernel_calls(program: Program) -> list[KernelCall]:
    """Every call of a Pallas kernel, wherever it is in the program.

    Raises:
      ValueError: a kernel other than those of splash attention, or shapes that are not theirs.
    """
    calls = [
        _splash(instruction, execution.count)
        for execution in program.executions
        for instruction in _kernels(program, execution)
    ]
    # What looks fused is not where queries of the same sizes have a kernel to themselves.
    apart = {call[2:] for call in calls if call.kind == "backward of queries"}
    return [
        call._replace(kind="backward of keys and values")
        if call.kind == "fused backward" and call[2:] in apart
        else call
        for call in calls
    ]


def _kernels(program: Program, execution: Execution) -> list[Instruction]:
    candidates = (execution.instruction, *program.inside(execution.instruction))
    return [one for one in candidates if one.is_kernel]


def _splash(call: Instruction, count: int) -> KernelCall:
    name = call.name.rpartition(".")[0] or call.name
    if "splash" not in name and "splash" not in call.source:
        raise ValueError(
            f"the program calls the Pallas kernel {name!r} ({call.source}), whose operations are "
            "not known: add them to sora_jax/pod/kernels.py"
        )
    floats = [x for x in _operands(call) if x.dtype in ("bf16", "f32") and len(x.shape) >= 3]
    if len(floats) < 3:
        raise ValueError(
            f"the kernel {name!r} has operands {_operands(call)}, and splash attention's begin "
            "with queries, keys and values [..., length, head width]: look at its version, and "
            "at sora_jax/pod/kernels.py"
        )
    queries, keys = floats[0].shape, floats[1].shape
    heads = math.prod(queries[:-2])
    kind = _kind(call, name, {queries[-2:], keys[-2:]})
    return KernelCall(kind, count, heads, queries[-2], keys[-2], queries[-1])


def _operands(call: Instruction) -> list[Array]:
    """Operands, whose shapes stand in the text as constraints on their layouts."""
    _, _, rest = call.attributes.partition("operand_layout_constraints={")
    return arrays(rest.partition("}}")[0] + "}")


def _kind(call: Instruction, name: str, whole: set[tuple[int, ...]]) -> str:
    """The kind of a kernel by its name and by how many gradients, of `whole` shapes, it makes."""
    if "dkv" in name:
        # That of queries, in parts to be summed, is made with those of keys and values.
        gradients = [x for x in arrays(call.type) if x.shape[-2:] in whole]
        return "fused backward" if len(gradients) >= 3 else "backward of keys and values"
    if "dq" in name:
        return "backward of queries"
    if "fwd" in name:
        return "forward"
    raise ValueError(
        f"the splash attention kernel {name!r} is none of fwd, dkv and dq: its operations are not "
        "known; add them to sora_jax/pod/kernels.py"
    )
