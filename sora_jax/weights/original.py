"""Names of tensors in Wan's own repositories, as diffusers calls them."""

import re

_MODULES = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_IN_BLOCKS = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
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


def to_original_name(module: str) -> str:
    """Wan's own name of a module of the transformer that diffusers calls so."""
    block, name, _ = _NAME.fullmatch(module).groups()
    names = _MODULES if block is None else _IN_BLOCKS
    return f"{block or ''}{next((k for k, v in names.items() if v == name), name)}"
