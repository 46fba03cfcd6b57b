"""What the backward pass finds of a transformer's blocks, and what it computes again."""

import jax

# What the policies below may keep of a block, by name (`jax.ad_checkpoint.checkpoint_name`).
INPUT = "input"  # float32, the residual stream
ATTENTION, TEXT_ATTENTION = "attention", "text_attention"
SUMS, TEXT_SUMS = "attention_sums", "text_attention_sums"  # log-sum-exps of the two
RESULTS = "results"  # of the three parts
HIDDEN = "hidden"  # layer of the MLP, before its GELU
OPERANDS = "operands"  # of self-attention, as its kernel takes them; queries of the other

_policies = jax.checkpoint_policies
# What the backward pass of a block finds in memory; the rest it computes again.
REMAT = {
    # Everything, for the fewest operations.
    "none": None,
    # All matrix products and attention: norms, GELU and the like cost little.
    "products": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable,
        _policies.save_only_these_names(ATTENTION, SUMS, TEXT_ATTENTION, TEXT_SUMS),
    ),
    # All that costs much and need not be kept twice.
    "hidden": _policies.save_only_these_names(ATTENTION, SUMS, RESULTS, OPERANDS, HIDDEN),
    # The same but for the largest. Self-attention is most of the work in long clips.
    "results": _policies.save_only_these_names(ATTENTION, SUMS, RESULTS, OPERANDS),
    # The same in the memory of the host, but for the small sums, which libtpu 0.0.42 cannot send.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[SUMS],
        names_which_can_be_offloaded=[INPUT, ATTENTION, RESULTS, OPERANDS],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # Self-attention and the block's input.
    "attention": _policies.save_only_these_names(ATTENTION, SUMS),
    # Nothing but the block's input, for the least memory.
    "blocks": _policies.nothing_saveable,
}
