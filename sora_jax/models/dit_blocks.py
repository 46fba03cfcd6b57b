"""A block of the diffusion transformer: attention to itself, attention to the text, an MLP."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from sora_jax.models.attention import attend
from sora_jax.models.context_parallel import Names
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.layers import Dense, layer_norm, rms_norm
from sora_jax.models.parameters import parameter
from sora_jax.models.remat import (
    ATTENTION,
    HIDDEN,
    INPUT,
    OPERANDS,
    RESULTS,
    SUMS,
    TEXT_ATTENTION,
    TEXT_SUMS,
)
from sora_jax.models.rope import rotate
from sora_jax.sharding import constrain

# The residual stream is [B, T, S, D]: T frames of S places. A mesh splits the places, so that what
# belongs to a frame, such as its noise level, is at hand on every device.
TOKENS = ("batch", None, "tokens", None)


class Text(NamedTuple):
    """What the blocks see of a prompt: keys and values float [layers, B, L, heads, d].

    Those of image tokens, of which there are M instead of L, are None in a model that reads none.
    """

    keys: jax.Array
    values: jax.Array
    image_keys: jax.Array | None = None
    image_values: jax.Array | None = None


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (1 + scale) + shift: x [B, T, S, D], shift and scale [B, T, D]."""
    return x * (1 + scale[:, :, None]) + shift[:, :, None]


def project_heads(module: nn.Module, name: str, x: jax.Array, *, normed: bool) -> jax.Array:
    """A projection of x [..., D] to heads [..., K, d], RMS-normed over the full width or not."""
    cfg: DiTConfig = module.config
    y = Dense(cfg.width, ("embed", "heads"), name=name, dtype=module.dtype)(x)
    if normed:
        ones, shape = nn.initializers.ones, (cfg.width,)
        y = rms_norm(y, parameter(module, f"{name}_norm", ones, ("heads",), shape))
        y = y.astype(module.dtype)
    return y.reshape(*y.shape[:-1], cfg.heads, cfg.head_width)


class SelfAttention(nn.Module):
    """Attention of x [B, T, S, D] to itself, at rotary angles [T, S, d / 2]."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, mask: jax.Array | None) -> jax.Array:
        q, k = (rotate(project_heads(self, n, x, normed=True), angles) for n in ("query", "key"))
        v = project_heads(self, "value", x, normed=False)
        y = attend(q, k, v, mask=mask, names=Names(ATTENTION, SUMS, OPERANDS))
        y = y.reshape(x.shape)
        y = Dense(self.config.width, ("heads", "embed"), name="out", dtype=self.dtype)(y)
        return checkpoint_name(y, RESULTS)


class CrossAttention(nn.Module):
    """Attention of x [B, T, S, D] to keys and values [B, L, K, d] that are there already.

    Image tokens have a softmax of their own; the results are added.
    """

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        q = checkpoint_name(project_heads(self, "query", x, normed=True), OPERANDS)
        names = Names(TEXT_ATTENTION, TEXT_SUMS)
        y = attend(q, text.keys, text.values, names=names)
        if text.image_keys is not None:
            y = y + attend(q, text.image_keys, text.image_values, names=names)
        y = y.reshape(x.shape)
        out = ("heads", "embed")
        y = Dense(self.config.width, out, name="out", dtype=self.dtype, zeros=True)(y)
        return checkpoint_name(y, RESULTS)


class Block(nn.Module):
    """Self-attention, text cross-attention and MLP; the identity when just initialised.

    Shift, scale and gate of the first and the last come from the noise level (adaLN-zero, arXiv
    2212.09748): a projection shared by all blocks plus the block's own table.
    """

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        text: Text,
        levels: jax.Array,
        angles: jax.Array,
        mask: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """x [B, T, S, D] float32, text of this block, levels [B, T, 6, D], angles [T, S, d / 2].

        The mask, bool [B, T, S], tells the tokens of x from those that only fill it up.
        """
        cfg, dtype = self.config, self.dtype
        ones, zeros, shape = nn.initializers.ones, nn.initializers.zeros, (cfg.width,)
        table = parameter(self, "modulation", zeros, (None, "embed"), (6, cfg.width))
        parts = jnp.moveaxis(levels + table[None, None], 2, 0)

        x = checkpoint_name(x, INPUT)
        y = modulate(layer_norm(x), parts[0], parts[1]).astype(dtype)
        y = SelfAttention(cfg, dtype, name="self_attention")(y, angles, mask)
        x = x + y * parts[2][:, :, None]

        scale = parameter(self, "text_norm_scale", ones, ("embed",), shape)
        bias = parameter(self, "text_norm_bias", zeros, ("embed",), shape)
        y = layer_norm(x) * scale[None, None, None] + bias[None, None, None]
        x = x + CrossAttention(cfg, dtype, name="cross_attention")(y.astype(dtype), text)

        y = modulate(layer_norm(x), parts[3], parts[4]).astype(dtype)
        y = Dense(cfg.mlp_width, ("embed", "mlp"), name="mlp_in", dtype=dtype)(y)
        y = checkpoint_name(constrain(y, (*TOKENS[:-1], "activation_mlp")), HIDDEN)
        y = nn.gelu(y, approximate=True)
        y = Dense(cfg.width, ("mlp", "embed"), name="mlp_out", dtype=dtype)(y)
        y = checkpoint_name(y, RESULTS)
        x = x + y * parts[5][:, :, None]
        return constrain(x, TOKENS), None
