"""The video compression network: a causal 3-D convolutional VAE in the shape of Wan 2.1's.

1 + 4k frames become 1 + k latent frames; the first frame is alone, so an image is a video of one
frame. Nothing looks ahead in time, so a clip may be encoded and decoded in chunks of four frames
(one latent frame) with the carry that `encode` and `decode` return, equal to the whole clip.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.attention import attend
from sora_jax.models.conv import Conv, Past
from sora_jax.models.pixels import to_float
from sora_jax.models.sizes import check_positive, is_counts
from sora_jax.sharding import constrain

Carry = list[jax.Array]

# A mesh that splits the tokens of the transformer splits the rows of frames here; the compiler
# exchanges the rows at the borders that convolutions need.
VIDEO = ("batch", None, "rows", None, None)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the network; the defaults are Wan 2.1's.

    Attributes:
      encoder_width, decoder_width: channels of the finest level.
      multipliers: width of each level, finest first; each but the last halves height and width.
      blocks: residual blocks a level going down; going up there is one more.
      temporal: for each halving, whether it also halves the frame rate, finest first.
      latent_channels: channels of the latents.
      patch: pixels of a square folded into channels before the network, as in Wan 2.2.

    Raises:
      ValueError: a size is not positive, or the tuples do not fit each other.
    """

    encoder_width: int = 96
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 16
    patch: int = 1

    def __post_init__(self):
        check_positive(self, "encoder_width", "decoder_width", "latent_channels", "patch")
        if self.blocks < 0:
            raise ValueError(f"VAEConfig.blocks is {self.blocks}; it must not be negative")
        if not is_counts(self.multipliers) or not self.multipliers:
            raise ValueError(
                f"VAEConfig.multipliers is {self.multipliers}; it must be a number of at least 1 "
                "for each level, such as (1, 2, 4)"
            )
        if not isinstance(self.temporal, tuple):
            raise ValueError(
                f"VAEConfig.temporal is {self.temporal}; it must be True or False for each halving "
                "between levels, such as (True, True)"
            )
        if len(self.temporal) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal {self.temporal} must have one entry fewer than multipliers "
                f"{self.multipliers}: one for each halving between levels"
            )

    @property
    def spatial_stride(self) -> int:
        """Pixels of a side that become one latent."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames after the first that become one latent frame."""
        return 2 ** sum(self.temporal)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[T, h, w, C] of the latents of a clip.

        Raises:
          ValueError: frames that are not 1 + 4k, or a size that does not divide.
        """
        time, space = self.temporal_stride, self.spatial_stride
        if frames < 1 or (frames - 1) % time:
            low = max(1, (frames - 1) // time * time + 1)
            raise ValueError(
                f"{frames} frames cannot be compressed: a clip has 1 + {time}k frames, "
                f"the nearest are {low} and {low + time}"
            )
        for name, size in (("height", height), ("width", width)):
            if size < space or size % space:
                low = max(space, size // space * space)
                raise ValueError(
                    f"{name} {size} cannot be compressed: it must be a multiple of {space}, "
                    f"the nearest are {low} and {low + space}"
                )
        return (1 + (frames - 1) // time, height // space, width // space, self.latent_channels)


def fold(x: jax.Array, patch: int) -> jax.Array:
    """[B, T, H, W, C] -> [B, T, H/p, W/p, C p p], channels laid out (C, width, height) as Wan's."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // patch, w // patch, -1)


def unfold(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `fold`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // patch**2, patch, patch)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, h * patch, w * patch, c // patch**2)


class Norm(nn.Module):
    """x / |x| * sqrt(C) * gain over the channels, computed in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",))
        gain = self.param("scale", ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(y * y, axis=-1, keepdims=True))
        y = y / jnp.maximum(length, 1e-12) * x.shape[-1] ** 0.5
        return (y * gain.reshape(1, 1, 1, 1, -1)).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Two causal 3x3x3 convolutions, each after a norm and SiLU, around a shortcut."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        y = nn.silu(Norm(name="norm_1")(x))
        y = Conv(self.features, (3, 3, 3), dtype=self.dtype, name="conv_1")(y, past)
        y = nn.silu(Norm(name="norm_2")(y))
        y = Conv(self.features, (3, 3, 3), dtype=self.dtype, name="conv_2")(y, past)
        if x.shape[-1] != self.features:
            x = Conv(self.features, dtype=self.dtype, name="shortcut")(x)
        return x + y


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        qkv = Conv(3 * c, dtype=self.dtype, name="qkv")(Norm(name="norm")(x))
        q, k, v = (p.reshape(b * t, h * w, 1, c) for p in jnp.split(qkv, 3, axis=-1))
        y = attend(q, k, v).reshape(b, t, h, w, c)
        return x + Conv(c, dtype=self.dtype, name="out")(y)


class Downsample(nn.Module):
    """Halves height and width, and the frame rate after the first frame if `temporal`."""

    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        c = x.shape[-1]
        corner = ((0, 1), (0, 1))
        x = Conv(c, (1, 3, 3), (1, 2), corner, dtype=self.dtype, name="space")(x)
        if not self.temporal:
            return x
        # Each output frame sees its two frames and the one before them; the very first frame has
        # nothing before it and passes through.
        time = Conv(c, (3, 1, 1), (2, 1), dtype=self.dtype, name="time")
        if past.first:
            past.kept.append(x[:, -1:])
            # Called even on a lone frame, so that parameters do not depend on the clip's length.
            rest = time(x if x.shape[1] > 1 else jnp.repeat(x, 3, axis=1))
            return jnp.concatenate([x[:, :1], rest], axis=1) if x.shape[1] > 1 else x
        return time(past.extend(x, 1))


class Upsample(nn.Module):
    """Doubles height and width and halves the channels; doubles the frame rate if `temporal`."""

    temporal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        c = x.shape[-1]
        if self.temporal:
            # The first frame passes through; what follows starts its own past.
            head, rest = (x[:, :1], x[:, 1:]) if past.first else (x[:, :0], x)
            rest = past.extend(rest, 2)
            time = Conv(2 * c, (3, 1, 1), dtype=self.dtype, name="time")
            if rest.shape[1] > 2:
                y = time(rest)
                b, t, h, w, _ = y.shape
                y = y.reshape(b, t, h, w, 2, c).transpose(0, 1, 4, 2, 3, 5)
                x = jnp.concatenate([head, y.reshape(b, 2 * t, h, w, c)], axis=1)
            elif self.is_initializing():
                time(jnp.repeat(x, 3, axis=1))
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return Conv(c // 2, (1, 3, 3), dtype=self.dtype, name="space")(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block_1")(x, past)
        x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="block_2")(x, past)


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
            x = constrain(x, VIDEO)
            for i in range(cfg.blocks):
                x = ResidualBlock(width, dtype, name=f"level_{level}_block_{i}")(x, past)
            if level < len(cfg.temporal):
                x = Downsample(cfg.temporal[level], dtype, name=f"level_{level}_down")(x, past)
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
            x = constrain(x, VIDEO)
            for i in range(cfg.blocks + 1):
                x = ResidualBlock(width, dtype, name=f"level_{level}_block_{i}")(x, past)
            if level < len(cfg.temporal):
                temporal = cfg.temporal[::-1][level]
                x = Upsample(temporal, dtype, name=f"level_{level}_up")(x, past)
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

    Training, precomputing and prompting all encode here, so that their latents are the same.
    """
    latents, _, _ = VAE(config, dtype).apply({"params": params}, to_float(frames), method="encode")
    return normalise(latents, mean, std)
