"""The image encoder: the vision transformer of CLIP (arXiv 2103.00020), as Wan 2.1 I2V reads it.

An image becomes the tokens that leave the block before the last: a class token and one for each
patch. The last block and the norm after it make the summary that CLIP itself compares with texts.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.attention import attend
from sora_jax.models.layers import Dense, LayerNorm, patchify, scan_blocks
from sora_jax.models.parameters import parameter
from sora_jax.models.sizes import check_positive
from sora_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Sizes of the encoder, and the pixels that it takes; the defaults are those of Wan 2.1 I2V.

    Attributes:
      width: channels of a token (D).
      layers, heads, mlp_width: of the transformer.
      side: of the square image, pixels.
      patch: side of a patch, pixels.
      mean, std: of each colour of a pixel in [0, 1].

    Raises:
      ValueError: a size is not positive, or sizes do not fit each other.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5120
    side: int = 224
    patch: int = 14
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        check_positive(self, "width", "layers", "heads", "mlp_width", "side", "patch")
        for name, whole, part in (("heads", "width", "heads"), ("patch", "side", "patch")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"ImageConfig.{whole} {getattr(self, whole)} does not divide by {name} "
                    f"{getattr(self, part)}; choose one that does"
                )
        colours = (self.mean, self.std)
        three = all(isinstance(numbers, tuple) and len(numbers) == 3 for numbers in colours)
        finite = three and all(
            type(x) in (int, float) and math.isfinite(x) for x in (*self.mean, *self.std)
        )
        if not finite or not min(self.std) > 0:
            raise ValueError(
                f"ImageConfig.mean {self.mean} and std {self.std} must be three numbers each, one "
                "for each colour, and std positive"
            )

    @property
    def tokens(self) -> int:
        return 1 + (self.side // self.patch) ** 2


class Block(nn.Module):
    """Self-attention and MLP, each on a normed input; scanned, and keeps what it was given."""

    config: ImageConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        """(x [B, N, D] float32, what was x before) to the same after this block."""
        cfg, dtype, x = self.config, self.dtype, carry[0]
        x = before = constrain(x, ("batch", None, None))
        y = LayerNorm(name="attention_norm")(x)

        def heads(name: str) -> jax.Array:
            z = Dense(cfg.width, ("embed", "heads"), name=name, dtype=dtype)(y)
            return z.reshape(*z.shape[:-1], cfg.heads, -1)

        y = attend(heads("query"), heads("key"), heads("value")).reshape(x.shape)
        x = x + Dense(cfg.width, ("heads", "embed"), name="out", dtype=dtype)(y)
        y = LayerNorm(name="mlp_norm")(x)
        y = Dense(cfg.mlp_width, ("embed", "mlp"), name="mlp_in", dtype=dtype)(y)
        y = nn.gelu(y, approximate=False)
        x = x + Dense(cfg.width, ("mlp", "embed"), name="mlp_out", dtype=dtype)(y)
        return (x, before), None


class ImageEncoder(nn.Module):
    """Pixels [B, side, side, 3] to tokens [B, M, D] and a summary [B, D], float32.

    Pixels are those of `image_pixels.prepare`.

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters, the residual stream and norms are float32.
    """

    config: ImageConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        cfg, patch = self.config, (1, self.config.patch, self.config.patch)
        x = patchify(pixels[:, None], patch).reshape(len(pixels), cfg.tokens - 1, -1)
        axes = (None, "embed")
        x = Dense(cfg.width, axes, name="patch_in", dtype=self.dtype, bias=False)(x)
        init = nn.initializers.normal(0.02)
        first = parameter(self, "class", init, ("embed",), (cfg.width,))
        first = jnp.broadcast_to(first, (len(pixels), 1, cfg.width))
        x = jnp.concatenate([first, x.astype(jnp.float32)], axis=1)
        x = x + parameter(self, "positions", init, axes, (cfg.tokens, cfg.width))[None]
        x = LayerNorm(name="norm_in")(x)
        blocks = scan_blocks(Block, cfg.layers)
        (x, tokens), _ = blocks(cfg, self.dtype, name="blocks")((x, x))
        return tokens, LayerNorm(name="norm_out")(x[:, 0])


def init_image(config: ImageConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of an image encoder."""
    return ImageEncoder(config).init(key, jnp.zeros((1, config.side, config.side, 3)))["params"]


def count_tokens(positions: int, config: ImageConfig | None) -> int:
    """How many image tokens a transformer reads of a clip.

    Args:
      positions: `DiTConfig.image_positions`, of a first and a last image; 0 for those of one image.
      config: of the image encoder; None without one.
    """
    return positions or (0 if config is None else config.tokens)


def image_tokens(config: ImageConfig, params: Any, pixels: jax.Array) -> jax.Array:
    """What the transformer reads of the images of each clip: tokens [B, n M, D], float32.

    Args:
      config: sizes.
      params: of the encoder.
      pixels: of `image_pixels.prepare`, [B, n, side, side, 3].
    """
    tokens, _ = ImageEncoder(config).apply(
        {"params": params}, pixels.reshape(-1, *pixels.shape[2:])
    )
    return tokens.reshape(len(pixels), -1, tokens.shape[-1])
