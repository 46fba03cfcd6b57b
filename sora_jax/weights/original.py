"""Names of tensors in Wan's own repositories, as diffusers calls them."""

import re

_MODULES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_IN_BLOCKS = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
for _ours, _theirs in (("self_attn", "attn1"), ("cross_attn", "attn2")):
    _IN_BLOCKS |= {f"{_ours}.{name}": f"{_theirs}.to_{name}" for name in "qkv"}
    _IN_BLOCKS |= {f"{_ours}.norm_{name}": f"{_theirs}.norm_{name}" for name in "qk"}
    _IN_BLOCKS[f"{_ours}.o"] = f"{_theirs}.to_out.0"
_NAME = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def to_diffusers_name(name: str) -> str:
    """diffusers' name of a tensor of Wan's transformer; others stay as they are."""
    block, module, leaf = _NAME.fullmatch(name).groups()
    names = _MODULES if block is None else _IN_BLOCKS
    return f"{block or ''}{names.get(module, module)}{leaf or ''}"
