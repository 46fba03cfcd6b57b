"""The image encoder: the vision transformer of CLIP (arXiv 2103.00020), as Wan 2.1 I2V reads it.

An image becomes the tokens that leave the block before the last: a class token and one for each
patch. The last block and the norm after it make the summary that CLIP itself compares with texts.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.models.attention import attend
from sora_jax.models.layers import Dense, LayerNorm, patchify, scan_blocks
from sora_jax.models.sizes import check_positive
from sora_jax.sharding import constrain

# Of what Pillow's resizing computes with: 8 bits of a pixel, 22 of a weight.
_BITS = 22


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
    """Pixels of `prepare` [B, side, side, 3] to tokens [B, M, D] and a summary [B, D], float32.

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
        first = self.param("class", nn.with_logical_partitioning(init, ("embed",)), (cfg.width,))
        first = jnp.broadcast_to(first, (len(pixels), 1, cfg.width))
        x = jnp.concatenate([first, x.astype(jnp.float32)], axis=1)
        shape = (cfg.tokens, cfg.width)
        x = x + self.param("positions", nn.with_logical_partitioning(init, axes), shape)[None]
        x = LayerNorm(name="norm_in")(x)
        blocks = scan_blocks(Block, cfg.layers)
        (x, tokens), _ = blocks(cfg, self.dtype, name="blocks")((x, x))
        return tokens, LayerNorm(name="norm_out")(x[:, 0])


def init_image(config: ImageConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of an image encoder."""
    return ImageEncoder(config).init(key, jnp.zeros((1, config.side, config.side, 3)))["params"]


def prepare(image: np.ndarray, config: ImageConfig) -> np.ndarray:
    """An image uint8 [H, W, 3] as the encoder takes it: float32 [side, side, 3].

    The shorter side is brought to `side`, and what is then too much of the longer one cut off.
    """
    side, (height, width) = config.side, image.shape[:2]
    short = min(height, width)
    image = resize(image, side * height // short, side * width // short)
    top, left = ((size - side) // 2 for size in image.shape[:2])
    image = image[top : top + side, left : left + side]
    return (image / np.float32(255) - np.float32(config.mean)) / np.float32(config.std)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic resizing of uint8 [H, W, 3], equal to Pillow's in every bit.

    Like Pillow's it reads over a wider range where an image gets smaller, takes widths first,
    rounds to 8 bits, and computes with whole numbers: float64 holds them exactly.
    """
    x = np.float64(image)
    for axis, size in ((1, width), (0, height)):
        if x.shape[axis] != size:
            sums = np.tensordot(_weights(x.shape[axis], size), x, axes=(1, axis))
            sums = np.clip(np.floor(sums / 2**_BITS + 0.5), 0, 255)
            x = np.moveaxis(sums, 0, axis)
    return x.astype(np.uint8)


def _weights(size: int, new_size: int) -> np.ndarray:
    """Of each old pixel in each new one, float64 [new, old], whole numbers that add to 2^22."""
    factor = size / new_size
    scale = max(factor, 1.0)
    weights = np.zeros((new_size, size))
    for i in range(new_size):
        centre = (i + 0.5) * factor
        # Pixels whose middle lies within two, of the wider scale, of the middle of the new one.
        low = max(0, int(centre - 2 * scale + 0.5))
        high = min(size, int(centre + 2 * scale + 0.5))
        x = np.abs((np.arange(low, high) - centre + 0.5) / scale)
        # The cubic of Keys (1981) with a = -0.5.
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        row = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        weights[i, low:high] = row / row.sum()
    return np.trunc(weights * 2**_BITS + np.copysign(0.5, weights))
