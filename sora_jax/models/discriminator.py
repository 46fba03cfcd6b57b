"""The patch discriminator that the VAE may be trained against: real frames or reconstructed ones?

It judges patches, not clips, as in arXiv 1611.07004: each score sees 22 by 22 pixels of 5 frames.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.conv import Conv
from sora_jax.models.layers import Dense, layer_norm


class Stage(nn.Module):
    """Halves height and width, then looks at the frames before and after.

    Each position is normalised by itself, over its channels: no statistics of a batch, whose clips
    lie on many devices and whose real and reconstructed halves come one after the other.

    Attributes:
      features: output channels.
      temporal: whether it looks at neighbouring frames.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, F, H, W, C] -> [B, F, H/2, W/2, features], sizes rounded up."""
        x = Conv(self.features, (1, 4, 4), (1, 2), dtype=self.dtype, name="space")(x)
        x = nn.leaky_relu(x, 0.2)
        if self.temporal:
            # The end frames stand for what lies beyond them: an image is a clip that stands still.
            beyond = ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0))
            y = jnp.pad(layer_norm(x), beyond, mode="edge")
            y = Conv(self.features, (3, 1, 1), dtype=self.dtype, name="time")(y)
            x = nn.leaky_relu(y, 0.2)
        return layer_norm(x)


class Discriminator(nn.Module):
    """A score of each patch of a clip or image, above 0 for real; 3 stages of 2-D and 1-D kernels.

    Attributes:
      width: channels of the first stage, doubled by each one after it.
      dtype: compute dtype; parameters are float32.
    """

    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, F, H, W, 3] in [-1, 1], of any size -> float32 [B, F, H/8, W/8], rounded up."""
        for i in range(3):
            x = Stage(self.width * 2**i, i > 0, self.dtype, name=f"stage_{i}")(x)
        # Silent at first, so that the VAE feels nothing before there is something to feel.
        x = Dense(1, ("conv_in", None), name="head", dtype=self.dtype, bias=False, zeros=True)(x)
        return x[..., 0].astype(jnp.float32)


def init_discriminator(key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a discriminator."""
    return Discriminator().init(key, jnp.zeros((1, 1, 8, 8, 3)))["params"]
