"""The diffusion transformer over spacetime patches, in the shape of Wan's, with a level per frame.

Noisy latents and the noise level of every latent frame go in; the clean latents (or the velocity)
come out. Any grid of latents that the patch divides is a valid input: position enters only
through rotary angles.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.attention import ATTENTION_RESULT, attend
from sora_jax.models.layers import (
    dense,
    layer_norm,
    patchify,
    rms_norm,
    sinusoids,
    unpatchify,
)
from sora_jax.models.rope import rope_angles, rotate
from sora_jax.models.sizes import check_positive, is_counts
from sora_jax.sharding import constrain

TOKENS = ("batch", "tokens", None)

# What the backward pass of a block finds in memory; the rest it computes again.
REMAT = {
    # Everything, for the fewest operations.
    "none": None,
    # Results of matrix products and of attention: norms, GELU and the like cost little.
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_RESULT),
    ),
    # Nothing but the block's input, for the least memory.
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer; the defaults are those of Wan 2.1 T2V-1.3B.

    Attributes:
      width, layers, heads, mlp_width: of the transformer; width / heads is the head's width.
      latent_channels: channels of the latents in and out.
      patch: latent frames, rows and columns that make a token.
      text_width: width of the text features.
      time_features: sinusoids of the noise level.
      prediction: what the output is, "clean" or "velocity".

    Raises:
      ValueError: a size is not positive, or sizes do not fit each other.
    """

    width: int = 1536
    layers: int = 30
    heads: int = 12
    mlp_width: int = 8960
    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_width: int = 4096
    time_features: int = 256
    prediction: str = "clean"

    def __post_init__(self):
        check_positive(self, "width", "layers", "heads", "mlp_width")
        check_positive(self, "latent_channels", "text_width", "time_features")
        if not is_counts(self.patch) or len(self.patch) != 3:
            raise ValueError(
                f"DiTConfig.patch is {self.patch}; it must be three numbers of at least 1: latent "
                "frames, rows and columns, such as (1, 2, 2)"
            )
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} over {self.heads} heads gives no even head width; "
                "choose heads that divide half the width"
            )
        if self.prediction not in ("clean", "velocity"):
            raise ValueError(f"prediction {self.prediction!r} must be 'clean' or 'velocity'")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens along time, height and width of latents [T, h, w].

        Raises:
          ValueError: a size that the patch does not divide.
        """
        for size, patch, axis in zip(latent_shape, self.patch, ("frames", "rows", "columns")):
            if size % patch:
                raise ValueError(
                    f"{size} latent {axis} are not a multiple of the patch's {patch}; "
                    f"use {size // patch * patch} or {size // patch * patch + patch}"
                )
        return tuple(size // patch for size, patch in zip(latent_shape, self.patch))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (1 + scale) + shift: x [B, N, D], shift and scale [B, T, D] for N / T tokens each."""
    b, n, d = x.shape
    x = x.reshape(b, shift.shape[1], -1, d)
    return (x * (1 + scale[:, :, None]) + shift[:, :, None]).reshape(b, n, d)


def gate(x: jax.Array, amount: jax.Array) -> jax.Array:
    """x [B, N, D] times amount [B, T, D], each frame's for its N / T tokens."""
    b, n, d = x.shape
    return (x.reshape(b, amount.shape[1], -1, d) * amount[:, :, None]).reshape(b, n, d)


class Attention(nn.Module):
    """Attention of x to `context` (to itself if None), q and k normed over the full width."""

    config: DiTConfig
    dtype: jnp.dtype
    zeros: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array | None = None, context: jax.Array | None = None
    ) -> jax.Array:
        cfg = self.config
        context = x if context is None else context
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
        q = dense(cfg.width, ("embed", "heads"), name="query", dtype=self.dtype)(x)
        k = dense(cfg.width, ("embed", "heads"), name="key", dtype=self.dtype)(context)
        v = dense(cfg.width, ("embed", "heads"), name="value", dtype=self.dtype)(context)
        q = rms_norm(q, self.param("query_norm", ones, (cfg.width,))).astype(self.dtype)
        k = rms_norm(k, self.param("key_norm", ones, (cfg.width,))).astype(self.dtype)
        q, k, v = (p.reshape(*p.shape[:2], cfg.heads, cfg.head_width) for p in (q, k, v))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = attend(q, k, v).reshape(x.shape)
        out = dense(cfg.width, ("heads", "embed"), name="out", dtype=self.dtype, zeros=self.zeros)
        return out(y)


class Block(nn.Module):
    """Self-attention, text cross-attention and MLP; the identity when just initialised.

    Shift, scale and gate of the first and the last come from the noise level (adaLN-zero, arXiv
    2212.09748): a projection shared by all blocks plus the block's own table.
    """

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, levels: jax.Array, angles: jax.Array, text: jax.Array
    ) -> tuple[jax.Array, None]:
        """x [B, N, D] float32, levels [B, T, 6, D], angles [N, d / 2], text [B, L, D]."""
        cfg, dtype = self.config, self.dtype
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
        table = self.param("modulation", zeros, (6, cfg.width))
        parts = jnp.moveaxis(levels + table[None, None], 2, 0)

        y = modulate(layer_norm(x), parts[0], parts[1]).astype(dtype)
        y = Attention(cfg, dtype, name="self_attention")(y, angles)
        x = x + gate(y, parts[2])

        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        y = layer_norm(x) * self.param("text_norm_scale", ones, (cfg.width,))[None, None]
        y = y + self.param("text_norm_bias", bias, (cfg.width,))[None, None]
        y = Attention(cfg, dtype, zeros=True, name="cross_attention")(y.astype(dtype), context=text)
        x = x + y

        y = modulate(layer_norm(x), parts[3], parts[4]).astype(dtype)
        y = dense(cfg.mlp_width, ("embed", "mlp"), name="mlp_in", dtype=dtype)(y)
        y = nn.gelu(constrain(y, ("batch", "tokens", "activation_mlp")), approximate=True)
        y = dense(cfg.width, ("mlp", "embed"), name="mlp_out", dtype=dtype)(y)
        x = x + gate(y, parts[5])
        return constrain(x, TOKENS), None


class DiT(nn.Module):
    """The whole transformer.

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters, the residual stream, norms and modulation are float32.
      remat: a key of REMAT: what the backward pass keeps of each block.
    """

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """The prediction for noisy latents.

        Args:
          x: float32 [B, T, h, w, C].
          t: noise levels [B, T] in [0, 1], 0 clean.
          text: features [B, L, text_width], zeros after the prompt's end.

        Returns:
          float32, shaped like x: clean latents or velocity, by `config.prediction`.
        """
        cfg, dtype = self.config, self.dtype
        grid = cfg.grid(x.shape[1:4])
        angles = rope_angles(tuple(jnp.arange(n) for n in grid), cfg.head_width)
        angles = angles.reshape(-1, cfg.head_width // 2)

        text = dense(cfg.width, (None, "embed"), name="text_in", dtype=dtype)(text.astype(dtype))
        text = nn.gelu(text, approximate=True)
        text = dense(cfg.width, ("embed", None), name="text_out", dtype=dtype)(text)

        time = sinusoids(t[:, :: cfg.patch[0]], cfg.time_features)
        time = dense(cfg.width, (None, "embed"), name="time_in", dtype=jnp.float32)(time)
        time = dense(cfg.width, ("embed", None), name="time_out", dtype=jnp.float32)(nn.silu(time))
        levels = dense(
            6 * cfg.width, ("embed", None), name="time_levels", dtype=jnp.float32, zeros=True
        )(nn.silu(time))
        levels = levels.reshape(*levels.shape[:2], 6, cfg.width)

        x = patchify(x, cfg.patch).reshape(x.shape[0], angles.shape[0], -1)
        x = dense(cfg.width, (None, "embed"), name="patch_in", dtype=dtype)(x.astype(dtype))
        x = constrain(x.astype(jnp.float32), TOKENS)

        policy = REMAT[self.remat]
        block = nn.remat(Block, prevent_cse=False, policy=policy) if policy else Block
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = blocks(cfg, dtype, name="blocks")(x, levels, angles, text)

        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
        table = self.param("head_modulation", zeros, (2, cfg.width))
        shift, scale = jnp.moveaxis(time[:, :, None] + table[None, None], 2, 0)
        x = modulate(layer_norm(x), shift, scale).astype(dtype)
        features = cfg.latent_channels * cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
        x = dense(features, ("embed", None), name="head", dtype=dtype, zeros=True)(x)
        return unpatchify(x.astype(jnp.float32).reshape(x.shape[0], *grid, -1), cfg.patch)


def init_dit(config: DiTConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a transformer."""
    x = jnp.zeros((1, *config.patch, config.latent_channels))
    text = jnp.zeros((1, 1, config.text_width))
    return DiT(config).init(key, x, jnp.zeros((1, config.patch[0])), text)["params"]


def flops(config: DiTConfig, tokens: int, text_tokens: int, frames: int = 1) -> int:
    """Floating-point operations of one forward pass of one clip (a multiply-add is two)."""
    d, n, m = config.width, tokens, text_tokens
    patch = config.latent_channels * config.patch[0] * config.patch[1] * config.patch[2]
    block = 2 * n * d * (4 * d + 2 * d + 2 * config.mlp_width) + 2 * m * d * 2 * d
    block += 4 * n * n * d + 4 * n * m * d
    ends = 2 * n * d * 2 * patch + 2 * m * (config.text_width * d + d * d)
    ends += 2 * frames * (config.time_features * d + d * d + 6 * d * d)
    return config.layers * block + ends
