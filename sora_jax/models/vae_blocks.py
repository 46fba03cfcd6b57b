"""What the two halves of the VAE are made of."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.attention import attend
from sora_jax.models.conv import Conv, Past
from sora_jax.models.parameters import parameter
from sora_jax.sharding import constrain

# A mesh that splits the tokens of the transformer splits the rows of frames here; the compiler
# exchanges the rows at the borders that convolutions need.
VIDEO = ("batch", None, "rows", None, None)


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
        gain = parameter(self, "scale", nn.initializers.ones, ("conv_out",), x.shape[-1:])
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
        # As places of one frame, which stay with the devices of their rows.
        q, k, v = (p.reshape(b * t, 1, h * w, 1, c) for p in jnp.split(qkv, 3, axis=-1))
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
    """Doubles height and width, to `features`; doubles the frame rate if `temporal`."""

    features: int
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
                # Halves of the channels are the earlier and the later of two frames. The compiler
                # for TPUs gathers the video to transpose them in one piece.
                halves = [constrain(y, VIDEO) for y in jnp.split(time(rest), 2, axis=-1)]
                y = jnp.stack(halves, axis=2).reshape(x.shape[0], -1, *x.shape[2:])
                x = jnp.concatenate([head, y], axis=1)
            elif self.is_initializing():
                time(jnp.repeat(x, 3, axis=1))
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return Conv(self.features, (1, 3, 3), dtype=self.dtype, name="space")(x)


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest level."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, past: Past) -> jax.Array:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block_1")(x, past)
        x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="block_2")(x, past)


def average_down(x: jax.Array, features: int, *, time: int, space: int, first: bool) -> jax.Array:
    """The shortcut around a level that halves: means of neighbouring channels of folded boxes.

    Args:
      x: [B, T, H, W, C].
      features: channels of the result.
      time, space: frames and pixels of a side that become one.
      first: whether x begins the clip; its first frame then shares its box with zeros.
    """
    if first:
        x = jnp.pad(x, ((0, 0), (time - 1, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // space, space, w // space, space, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], features, -1).mean(axis=-1)


def duplicate_up(x: jax.Array, features: int, *, time: int, space: int, first: bool) -> jax.Array:
    """The shortcut around a level that doubles: copies of channels, unfolded into boxes.

    Args:
      x: [B, T, H, W, C].
      features: channels of the result.
      time, space: frames and pixels of a side that one becomes.
      first: whether x begins the clip; its first frame then becomes a single one.
    """
    b, t, h, w, c = x.shape
    x = jnp.repeat(x, features * time * space**2 // c, axis=-1)
    x = x.reshape(b, t, h, w, features, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, t * time, h * space, w * space, features)
    return x[:, time - 1 :] if first else x
