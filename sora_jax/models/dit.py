"""The diffusion transformer over spacetime patches, in the shape of Wan's, with a level per frame.

Noisy latents and the noise level of every latent frame go in; the clean latents (or the velocity)
come out. Any grid of latents is a valid input: position enters only through rotary angles, and a
patch that reaches over the edge is filled up with what lies at the edge.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from sora_jax.models.attention import attend
from sora_jax.models.context_parallel import Names
from sora_jax.models.layers import (
    Dense,
    LayerNorm,
    layer_norm,
    patchify,
    rms_norm,
    sinusoids,
    unpatchify,
)
from sora_jax.models.rope import rope_angles, rotate
from sora_jax.models.sizes import check_positive, is_counts
from sora_jax.sharding import constrain, ways

# The residual stream is [B, T, S, D]: T frames of S places. A mesh splits the places, so that what
# belongs to a frame, such as its noise level, is at hand on every device.
TOKENS = ("batch", None, "tokens", None)

# What the policies below may keep of a block, by name.
_INPUT = "input"  # float32, the residual stream
_ATTENTION, _TEXT_ATTENTION = "attention", "text_attention"  # with their log-sum-exps
_RESULTS = "results"  # of the three parts
_HIDDEN = "hidden"  # layer of the MLP, before its GELU
_OPERANDS = "operands"  # of self-attention, as its kernel takes them; queries of the other

_policies = jax.checkpoint_policies
# What the backward pass of a block finds in memory; the rest it computes again.
REMAT = {
    # Everything, for the fewest operations.
    "none": None,
    # All matrix products and attention: norms, GELU and the like cost little.
    "products": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable,
        _policies.save_only_these_names(_ATTENTION, _TEXT_ATTENTION),
    ),
    # All that costs much and need not be kept twice.
    "hidden": _policies.save_only_these_names(_ATTENTION, _RESULTS, _OPERANDS, _HIDDEN),
    # The same but for the largest. Self-attention is most of the work in long clips.
    "results": _policies.save_only_these_names(_ATTENTION, _RESULTS, _OPERANDS),
    # The same, all but the attention in the memory of the host.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[_ATTENTION],
        names_which_can_be_offloaded=[_INPUT, _RESULTS, _OPERANDS],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    # Self-attention and the block's input.
    "attention": _policies.save_only_these_names(_ATTENTION),
    # Nothing but the block's input, for the least memory.
    "blocks": _policies.nothing_saveable,
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
      image_channels: channels that images are given by beside the noise, 0 for none; in Wan 2.1 I2V
        20, of them 4 a mask and 16 latents.
      image_width: width of image tokens, which cross-attention sees beside the text, 0 for none;
        1280 in Wan 2.1 I2V, whose tokens are CLIP's.
      image_positions: number of image tokens that have a position of their own, those of a first
        and a last frame; 0 for none.

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
    image_channels: int = 0
    image_width: int = 0
    image_positions: int = 0

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
        for name in ("image_channels", "image_width", "image_positions"):
            if getattr(self, name) < 0:
                raise ValueError(f"DiTConfig.{name} is {getattr(self, name)}; use 0 for none")
        for name, needed in (("image_width", "channels"), ("image_positions", "width")):
            if getattr(self, name) and not getattr(self, f"image_{needed}"):
                raise ValueError(
                    f"DiTConfig.{name} is {getattr(self, name)} without image_{needed}; set both, "
                    "or neither"
                )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens along time, height and width of latents [T, h, w]."""
        return tuple(-(-size // patch) for size, patch in zip(latent_shape, self.patch))


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (1 + scale) + shift: x [B, T, S, D], shift and scale [B, T, D]."""
    return x * (1 + scale[:, :, None]) + shift[:, :, None]


class Text(NamedTuple):
    """What the blocks see of a prompt: keys and values float [layers, B, L, heads, d].

    Those of image tokens, of which there are M instead of L, are None in a model that reads none.
    """

    keys: jax.Array
    values: jax.Array
    image_keys: jax.Array | None = None
    image_values: jax.Array | None = None


def _heads(module: nn.Module, name: str, x: jax.Array, *, normed: bool) -> jax.Array:
    """A projection of x [..., D] to heads [..., K, d], RMS-normed over the full width or not."""
    cfg: DiTConfig = module.config
    y = Dense(cfg.width, ("embed", "heads"), name=name, dtype=module.dtype)(x)
    if normed:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("heads",))
        y = rms_norm(y, module.param(f"{name}_norm", ones, (cfg.width,))).astype(module.dtype)
    return y.reshape(*y.shape[:-1], cfg.heads, cfg.head_width)


class SelfAttention(nn.Module):
    """Attention of x [B, T, S, D] to itself, at rotary angles [T, S, d / 2]."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, mask: jax.Array | None) -> jax.Array:
        q, k = (rotate(_heads(self, n, x, normed=True), angles) for n in ("query", "key"))
        v = _heads(self, "value", x, normed=False)
        y = attend(q, k, v, mask=mask, names=Names(_ATTENTION, _OPERANDS))
        y = y.reshape(x.shape)
        y = Dense(self.config.width, ("heads", "embed"), name="out", dtype=self.dtype)(y)
        return checkpoint_name(y, _RESULTS)


class CrossAttention(nn.Module):
    """Attention of x [B, T, S, D] to keys and values [B, L, K, d] that are there already.

    Image tokens have a softmax of their own; the results are added.
    """

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        q = checkpoint_name(_heads(self, "query", x, normed=True), _OPERANDS)
        names = Names(_TEXT_ATTENTION)
        y = attend(q, text.keys, text.values, names=names)
        if text.image_keys is not None:
            y = y + attend(q, text.image_keys, text.image_values, names=names)
        y = y.reshape(x.shape)
        out = ("heads", "embed")
        y = Dense(self.config.width, out, name="out", dtype=self.dtype, zeros=True)(y)
        return checkpoint_name(y, _RESULTS)


class KeysAndValues(nn.Module):
    """Keys and values of one block for embedded tokens; scanned, so with a carry."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry: None, text: jax.Array, image: jax.Array | None) -> tuple[None, Text]:
        """Text [B, L, D] and image [B, M, D]."""
        keys = _heads(self, "key", text, normed=True)
        result = Text(keys, _heads(self, "value", text, normed=False))
        if image is None:
            return carry, result
        keys = _heads(self, "image_key", image, normed=True)
        values = _heads(self, "image_value", image, normed=False)
        return carry, result._replace(image_keys=keys, image_values=values)


class ImageIn(nn.Module):
    """Image tokens [B, M, image_width] to [B, M, D]: an MLP between two norms."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        if cfg.image_positions:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
            shape = (cfg.image_positions, cfg.image_width)
            x = x + self.param("positions", zeros, shape)[None]
        x = LayerNorm(name="norm_in")(x).astype(dtype)
        x = Dense(cfg.image_width, (None, "embed"), name="mlp_in", dtype=dtype)(x)
        x = nn.gelu(x, approximate=False)
        x = Dense(cfg.width, ("embed", None), name="mlp_out", dtype=dtype)(x)
        return LayerNorm(name="norm_out")(x).astype(dtype)


class TextReader(nn.Module):
    """What every block sees of a prompt, and of the tokens of an image.

    It does not depend on the noise: once a video will do.
    """

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array, image: jax.Array | None = None) -> Text:
        """Keys and values of features.

        Args:
          text: [B, L, text_width], zeros after the prompt's end.
          image: tokens [B, M, image_width], in a model with image_width only.

        Raises:
          ValueError: image tokens are missing, or too many.
        """
        cfg, dtype = self.config, self.dtype
        if (image is None) != (cfg.image_width == 0):
            raise ValueError(
                f"image_width is {cfg.image_width}, and image tokens are "
                f"{'missing' if image is None else 'given'}: a model reads them if it is not 0"
            )
        if image is not None:
            image = ImageIn(cfg, dtype, name="image_in")(image)
        text = Dense(cfg.width, (None, "embed"), name="text_in", dtype=dtype)(text.astype(dtype))
        text = nn.gelu(text, approximate=True)
        text = Dense(cfg.width, ("embed", None), name="text_out", dtype=dtype)(text)
        # Its weights are gathered again in the backward pass: all blocks' would be kept whole.
        block = nn.remat(KeysAndValues, prevent_cse=False)
        blocks = _scan(block, cfg.layers, nn.broadcast)
        return blocks(cfg, dtype, name="blocks")(None, text, image)[1]


def _scan(block: type[nn.Module], layers: int, in_axes: object) -> type[nn.Module]:
    """The block `layers` times, one after the other, its parameters stacked."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


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
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
        table = self.param("modulation", zeros, (6, cfg.width))
        parts = jnp.moveaxis(levels + table[None, None], 2, 0)

        x = checkpoint_name(x, _INPUT)
        y = modulate(layer_norm(x), parts[0], parts[1]).astype(dtype)
        y = SelfAttention(cfg, dtype, name="self_attention")(y, angles, mask)
        x = x + y * parts[2][:, :, None]

        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
        y = layer_norm(x) * self.param("text_norm_scale", ones, (cfg.width,))[None, None, None]
        y = y + self.param("text_norm_bias", bias, (cfg.width,))[None, None, None]
        x = x + CrossAttention(cfg, dtype, name="cross_attention")(y.astype(dtype), text)

        y = modulate(layer_norm(x), parts[3], parts[4]).astype(dtype)
        y = Dense(cfg.mlp_width, ("embed", "mlp"), name="mlp_in", dtype=dtype)(y)
        y = checkpoint_name(constrain(y, (*TOKENS[:-1], "activation_mlp")), _HIDDEN)
        y = nn.gelu(y, approximate=True)
        y = Dense(cfg.width, ("mlp", "embed"), name="mlp_out", dtype=dtype)(y)
        y = checkpoint_name(y, _RESULTS)
        x = x + y * parts[5][:, :, None]
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
    def __call__(
        self, x: jax.Array, t: jax.Array, text: jax.Array | Text, image: jax.Array | None = None
    ) -> jax.Array:
        """The prediction for noisy latents.

        Args:
          x: float32 [B, T, h, w, C], behind whose C = latent_channels those of images follow where
            the model takes any: C = latent_channels + image_channels.
          t: noise levels [B, T] in [0, 1], 0 clean.
          text: features [B, L, text_width], zeros after the prompt's end, or what a `TextReader`
            with the parameters "text_reader" made of them, and of the image.
          image: tokens [B, M, image_width] beside features of text, if the model reads any.

        Returns:
          float32 [B, T, h, w, latent_channels]: clean latents or velocity, by `config.prediction`.
        """
        cfg, dtype = self.config, self.dtype
        grid = cfg.grid(x.shape[1:4])
        if not isinstance(text, Text):
            text = TextReader(cfg, dtype, name="text_reader")(text, image)

        time = sinusoids(t[:, :: cfg.patch[0]], cfg.time_features)
        time = Dense(cfg.width, (None, "embed"), name="time_in", dtype=jnp.float32)(time)
        time = Dense(cfg.width, ("embed", None), name="time_out", dtype=jnp.float32)(nn.silu(time))
        levels = nn.remat(Dense)(
            6 * cfg.width, ("embed", None), name="time_levels", dtype=jnp.float32, zeros=True
        )(nn.silu(time))
        levels = levels.reshape(*levels.shape[:2], 6, cfg.width)

        shape = x.shape
        missing = [(0, n * p - size) for n, p, size in zip(grid, cfg.patch, shape[1:4])]
        x = jnp.pad(x, [(0, 0), *missing, (0, 0)], mode="edge")
        x = patchify(x, cfg.patch).reshape(shape[0], grid[0], grid[1] * grid[2], -1)
        angles = rope_angles(tuple(jnp.arange(n) for n in grid), cfg.head_width)
        x, angles, mask = _fill_up(x, angles.reshape(*x.shape[1:3], -1))

        x = constrain(x, TOKENS)
        x = Dense(cfg.width, (None, "embed"), name="patch_in", dtype=dtype)(x.astype(dtype))
        x = constrain(x.astype(jnp.float32), TOKENS)

        policy = REMAT[self.remat]
        block = nn.remat(Block, prevent_cse=False, policy=policy) if policy else Block
        blocks = _scan(block, cfg.layers, (0, *(nn.broadcast,) * 3))
        x, _ = blocks(cfg, dtype, name="blocks")(x, text, levels, angles, mask)

        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None, "embed"))
        table = self.param("head_modulation", zeros, (2, cfg.width))
        shift, scale = jnp.moveaxis(time[:, :, None] + table[None, None], 2, 0)
        x = modulate(layer_norm(x), shift, scale).astype(dtype)
        features = cfg.latent_channels * cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
        x = Dense(features, ("embed", None), name="head", dtype=dtype, zeros=True)(x)
        x = x[:, :, : grid[1] * grid[2]].astype(jnp.float32)
        x = unpatchify(x.reshape(shape[0], *grid, -1), cfg.patch)
        return x[:, : shape[1], : shape[2], : shape[3]]


def _fill_up(x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Places of x [B, T, S, C] and angles [T, S, d / 2] up to a number that the mesh divides.

    With them comes what attention may see, bool [B, T, S]; None if nothing is missing.
    """
    count = x.shape[2]
    more = -count % ways("tokens")
    if not more:
        return x, angles, None
    x = jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, 0)])
    angles = jnp.pad(angles, [(0, 0), (0, more), (0, 0)])
    return x, angles, jnp.broadcast_to(jnp.arange(count + more) < count, x.shape[:3])


def init_dit(config: DiTConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a transformer."""
    x = jnp.zeros((1, *config.patch, config.latent_channels + config.image_channels))
    text = jnp.zeros((1, 1, config.text_width))
    inputs = [x, jnp.zeros((1, config.patch[0])), text]
    if config.image_width:
        inputs.append(jnp.zeros((1, config.image_positions or 1, config.image_width)))
    return DiT(config).init(key, *inputs)["params"]


def flops(
    config: DiTConfig, tokens: int, text_tokens: int, frames: int = 1, image_tokens: int = 0
) -> int:
    """Floating-point operations of one forward pass of one clip (a multiply-add is two)."""
    d, n, m = config.width, tokens, text_tokens + image_tokens
    patch = config.patch[0] * config.patch[1] * config.patch[2]
    block = 2 * n * d * (4 * d + 2 * d + 2 * config.mlp_width) + 2 * m * d * 2 * d
    ends = 2 * n * d * patch * (2 * config.latent_channels + config.image_channels)
    ends += 2 * text_tokens * (config.text_width * d + d * d)
    ends += 2 * image_tokens * config.image_width * (config.image_width + d)
    ends += 2 * frames * (config.time_features * d + d * d + 6 * d * d)
    return config.layers * block + attention_flops(config, tokens, m) + ends


def attention_flops(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """Those of `flops` that are no product with weights: scores, and sums of values by them."""
    return config.layers * 4 * tokens * (tokens + text_tokens) * config.width
