"""The text encoder: token ids to one vector a token, in the tensor structure of UMT5's encoder.

UMT5 (arXiv 2304.09151) is T5 v1.1 (arXiv 1910.10683, 2002.05202) whose every layer has its own
table of relative position biases. Open UMT5 weights therefore load one to one, and a small encoder
trained here has the same parameter tree.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.models.layers import Dense, rms_norm, scan_blocks
from sora_jax.models.parameters import parameter
from sora_jax.models.sizes import check_positive
from sora_jax.sharding import constrain

# Added to the logits of padding. Finite, so that a row of nothing but padding stays finite too.
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder; UMT5-XXL is (256384, 4096, 24, 64, 64, 10240).

    Attributes:
      vocabulary: number of token ids.
      width: channels of a token (D).
      layers: number of blocks.
      heads: attention heads (K).
      head_width: channels of a head; `heads * head_width` need not equal `width`.
      mlp_width: hidden channels of the gated MLP.
      buckets: relative positions told apart by a bias, both directions together.
      max_distance: distance in tokens from which all positions share the last bucket.

    Raises:
      ValueError: a size is not positive, or the buckets cannot hold both directions.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_width: int
    mlp_width: int
    buckets: int = 32
    max_distance: int = 128

    def __post_init__(self):
        check_positive(self, *dataclasses.asdict(self))
        if self.buckets % 4:
            raise ValueError(
                f"TextConfig.buckets is {self.buckets}; it must divide by 4 (two directions, "
                "each half exact and half logarithmic), as 32 does"
            )
        if self.max_distance <= self.buckets // 4:
            raise ValueError(
                f"TextConfig.max_distance is {self.max_distance}; with {self.buckets} buckets it "
                f"must exceed {self.buckets // 4}"
            )


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Which bias each pair of positions uses: int32 [L, L], query row, key column.

    Half of the buckets serve keys at or before the query, half those after it. Of each half, the
    first half hold one distance each; the rest widen logarithmically up to `max_distance`, beyond
    which all share the last (arXiv 1910.10683, section 2.1).
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    side = buckets // 2
    exact = side // 2
    # Float32 on the host: distances that fall on a bucket's edge must round as they do in PyTorch.
    octaves = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    wide = octaves / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    wide = np.minimum(exact + wide.astype(np.int32), side - 1)
    return (np.where(distance < exact, distance, wide) + side * (offset > 0)).astype(np.int32)


class RMSNorm(nn.Module):
    """`rms_norm` with its learned scale, for inputs and outputs of the compute dtype."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), x.shape[-1:])
        return rms_norm(x, scale).astype(self.dtype)


class Block(nn.Module):
    """Self-attention with relative position bias, then a gated MLP, each on a normalised input."""

    config: TextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """x [B, L, D], buckets int [L, L], mask float32 [B, 1, 1, L] -> (x [B, L, D], None)."""
        config = self.config
        batch, length, width = x.shape
        inner = config.heads * config.head_width
        # Left alone, the compiler splits channels as the weights are split and gathers the batch.
        x = constrain(x, ("batch", None, None))

        def dense(name, features, spread, axes):
            return Dense(features, axes, self.dtype, bias=False, spread=spread, name=name)

        def project(name, y, spread):
            y = dense(name, inner, spread, ("embed", "heads"))(y)
            return y.reshape(batch, length, config.heads, config.head_width)

        y = RMSNorm(self.dtype, name="attention_norm")(x)
        # The logits are not divided by sqrt(head width): the queries start that much smaller.
        query = project("query", y, (width * config.head_width) ** -0.5)
        key = project("key", y, width**-0.5)
        value = project("value", y, width**-0.5)
        init, shape = nn.initializers.normal(width**-0.5), (config.buckets, config.heads)
        table = parameter(self, "position_bias", init, (None, None), shape)
        logits = jnp.einsum("blkh,bmkh->bklm", query, key, preferred_element_type=jnp.float32)
        logits = logits + table.T[:, buckets][None] + mask
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bklm,bmkh->blkh", weights, value).reshape(batch, length, inner)
        x = x + dense("out", width, inner**-0.5, ("heads", "embed"))(y)

        y = RMSNorm(self.dtype, name="mlp_norm")(x)
        gate = dense("gate", config.mlp_width, width**-0.5, ("embed", "mlp"))(y)
        up = dense("up", config.mlp_width, width**-0.5, ("embed", "mlp"))(y)
        y = nn.gelu(gate, approximate=True) * up
        return x + dense("down", width, config.mlp_width**-0.5, ("mlp", "embed"))(y), None


class TextEncoder(nn.Module):
    """UMT5's encoder: int32 tokens [B, L] -> `dtype` [B, L, D].

    Token id 0 is padding: nothing attends to it and its output is zero, as Wan feeds its
    transformer. A row of nothing but padding gives zeros. An id outside the vocabulary gives NaN,
    not some other word's vector.

    Attributes:
      config: the sizes.
      dtype: compute and output dtype; parameters, norms and softmax are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    config: TextConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        config = self.config
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens are {tokens.dtype} {list(tokens.shape)}; the text encoder takes "
                "integer [batch, length]: add a batch axis, or tokenize first"
            )
        init, axes = nn.initializers.normal(1.0), ("vocabulary", "embed")
        shape = (config.vocabulary, config.width)
        table = parameter(self, "embedding", init, axes, shape)
        x = jnp.take(table, tokens, axis=0, mode="fill").astype(self.dtype)

        present = tokens != 0
        mask = jnp.where(present, 0.0, MASKED)[:, None, None, :]
        buckets = jnp.asarray(
            position_buckets(tokens.shape[1], config.buckets, config.max_distance)
        )
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        blocks = scan_blocks(block, config.layers, (nn.broadcast, nn.broadcast))
        x, _ = blocks(config, self.dtype, name="blocks")(x, buckets, mask)
        x = RMSNorm(self.dtype, name="norm")(x)
        return jnp.where(present[..., None], x, 0).astype(self.dtype)


def init_text(config: TextConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a text encoder."""
    return TextEncoder(config).init(key, jnp.ones((1, 1), jnp.int32))["params"]


def flops(config: TextConfig, tokens: int) -> int:
    """Floating-point operations of one pass over one text (a multiply-add is two)."""
    inner = config.heads * config.head_width
    dense = 4 * config.width * inner + 3 * config.width * config.mlp_width
    return config.layers * (2 * tokens * dense + 4 * tokens * tokens * inner)
