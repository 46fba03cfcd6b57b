"""The video compression network: a causal 3-D convolutional VAE in the shape of Wan's.

1 + 4k frames become 1 + k latent frames; the first frame is alone, so an image is a video of one
frame. Nothing looks ahead in time, so a clip may be encoded and decoded in chunks of four frames
(one latent frame) with the carry that `encode` and `decode` return, equal to the whole clip.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.conv import Conv, Past
from sora_jax.models.pixels import to_float
from sora_jax.models.vae_blocks import (
    VIDEO,
    Downsample,
    Middle,
    Norm,
    ResidualBlock,
    Upsample,
    average_down,
    duplicate_up,
    fold,
    unfold,
)
from sora_jax.models.vae_config import VAEConfig
from sora_jax.sharding import constrain

Carry = list[jax.Array]


class Encoder(nn.Module):
    """Frames to twice the latent channels: mean and log-variance."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        widths = [cfg.encoder_width * m for m in cfg.multipliers]
        x = Conv(widths[0], (3, 3, 3), dtype=dtype, name="conv_in")(constrain(x, VIDEO), past)
        for level, width in enumerate(widths):
            x = before = constrain(x, VIDEO)
            for i in range(cfg.blocks):
                x = ResidualBlock(width, dtype, name=f"level_{level}_block_{i}")(x, past)
            halves = level < len(cfg.temporal)
            temporal = halves and cfg.temporal[level]
            if halves:
                x = Downsample(temporal, dtype, name=f"level_{level}_down")(x, past)
            if cfg.shortcuts:
                box = {"time": 1 + temporal, "space": 1 + halves}
                x = x + average_down(before, width, **box, first=past.first)
        x = Middle(dtype, name="middle")(x, past)
        x = nn.silu(Norm(name="norm_out")(x))
        x = Conv(2 * cfg.latent_channels, (3, 3, 3), dtype=dtype, name="conv_out")(x, past)
        return Conv(2 * cfg.latent_channels, dtype=dtype, name="quantize")(x)


class Decoder(nn.Module):
    """Latents to frames."""

    config: VAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array, past: Past) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        widths = [cfg.decoder_width * m for m in reversed(cfg.multipliers)]
        x = Conv(cfg.latent_channels, dtype=dtype, name="dequantize")(constrain(z, VIDEO))
        x = Conv(widths[0], (3, 3, 3), dtype=dtype, name="conv_in")(x, past)
        x = Middle(dtype, name="middle")(x, past)
        for level, width in enumerate(widths):
            x = before = constrain(x, VIDEO)
            for i in range(cfg.blocks + 1):
                x = ResidualBlock(width, dtype, name=f"level_{level}_block_{i}")(x, past)
            if level < len(cfg.temporal):
                temporal = cfg.temporal[::-1][level]
                after = width if cfg.shortcuts else width // 2
                x = Upsample(after, temporal, dtype, name=f"level_{level}_up")(x, past)
                if cfg.shortcuts:
                    box = {"time": 1 + temporal, "space": 2}
                    x = x + duplicate_up(before, after, **box, first=past.first)
        x = nn.silu(Norm(name="norm_out")(x))
        return Conv(3 * cfg.patch**2, (3, 3, 3), dtype=dtype, name="conv_out")(x, past)


class VAE(nn.Module):
    """Encoder and decoder; video is float [B, F, H, W, 3] in [-1, 1].

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters are float32.
    """

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.config, self.dtype)

    def encode(
        self, x: jax.Array, carry: Carry | None = None
    ) -> tuple[jax.Array, jax.Array, Carry]:
        """Mean and log-variance of the latents, float32 [B, T, h, w, C], and the carry.

        The first chunk of a clip (carry None) has 1 + 4k frames, each later one 4k.
        """
        past = Past(carry)
        mean, logvar = jnp.split(self.encoder(fold(x, self.config.patch), past), 2, axis=-1)
        # Bounds that keep the exponential finite, as latent diffusion's (arXiv 2112.10752).
        logvar = jnp.clip(logvar.astype(jnp.float32), -30.0, 20.0)
        return mean.astype(jnp.float32), logvar, past.kept

    def decode(self, z: jax.Array, carry: Carry | None = None) -> tuple[jax.Array, Carry]:
        """Frames of latents [B, T, h, w, C], float32 [B, F, H, W, 3], and the carry.

        The first chunk (carry None) gives 1 + 4 (T - 1) frames, each later one 4 T.
        """
        past = Past(carry)
        x = unfold(self.decoder(z, past), self.config.patch)
        return x.astype(jnp.float32), past.kept

    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reconstruction, mean and log-variance with latents drawn by standard normal `noise`."""
        mean, logvar, _ = self.encode(x)
        y, _ = self.decode(mean + jnp.exp(0.5 * logvar) * noise)
        return y, mean, logvar


def init_vae(config: VAEConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a VAE."""
    frames = jnp.zeros((1, 1, config.spatial_stride, config.spatial_stride, 3))
    noise = jnp.zeros((1, 1, 1, 1, config.latent_channels))
    return VAE(config).init(key, frames, noise)["params"]


def normalise(latents: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Latents [..., C] as the transformer sees them: each channel with mean 0 and deviation 1."""
    shape = (1,) * (latents.ndim - 1) + (-1,)
    return (latents - jnp.reshape(mean, shape)) / jnp.reshape(std, shape)


def denormalise(latents: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """The inverse of `normalise`."""
    shape = (1,) * (latents.ndim - 1) + (-1,)
    return latents * jnp.reshape(std, shape) + jnp.reshape(mean, shape)


def encode_frames(
    config: VAEConfig,
    params: dict,
    frames: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """What the transformer sees of frames uint8 [B, F, H, W, 3]: posterior means, normalised.

    Training and precomputing encode here, and prompting does unless a clip is too large to be taken
    whole (`vae_clips.encode_clip`), so that their latents are the same.
    """
    latents, _, _ = VAE(config, dtype).apply({"params": params}, to_float(frames), method="encode")
    return normalise(latents, mean, std)
