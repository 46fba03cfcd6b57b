"""Convolutions of video, channels last, and the frames that a causal stream carries along."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.conv_cpu import conv_frame_by_frame
from sora_jax.models.conv_image import conv_image
from sora_jax.models.parameters import parameter

# Pixels from which a clip's frames are convolved one at a time on CPU; smaller ones fit the cache.
LARGE_FRAME = 32 * 32
# Images that a convolution of images needs for TPUs to be busy: they compute eight rows at a time.
FULL_BATCH = 8


class Past:
    """The frames that a causal network still needs of what came before, in the order it asks.

    A clip can be fed in chunks: each operation that looks back prepends the frames it kept of the
    chunk before and keeps its last ones for the chunk after. The network sees the same operations
    in the same order each time, so a flat list is enough, and the list is the carry of the stream.

    Attributes:
      first: whether nothing came before.
      kept: what the next chunk needs, filled while the network runs.
    """

    def __init__(self, frames: Sequence[jax.Array] | None = None):
        self.first = frames is None
        self.kept: list[jax.Array] = []
        self._frames = iter(frames or ())

    def take(self) -> jax.Array:
        """The frames that the same operation kept last time."""
        return next(self._frames)

    def extend(self, x: jax.Array, count: int) -> jax.Array:
        """x [B, T, ...] with `count` earlier frames before it: zeros at the start of a clip."""
        before = jnp.zeros_like(x[:, :1], shape=(x.shape[0], count, *x.shape[2:]))
        x = jnp.concatenate([before if self.first else self.take(), x], axis=1)
        self.kept.append(x[:, -count:])
        return x

    def extend_or_cut(self, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x and kernel whose product without padding in time is the causal convolution.

        A lone first frame sees nothing but itself: the last tap alone gives the same, without
        multiplying the zeros before it.
        """
        y = self.extend(x, kernel.shape[0] - 1)
        return (x, kernel[-1:]) if self.first and x.shape[1] == 1 else (y, kernel)


def conv_video(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """A 3-D convolution without padding in time: [B, T, H, W, C] by [kt, kh, kw, C, D].

    Args:
      x: video.
      kernel: weights.
      stride: of time, and of height and width.
      padding: of height and width.
    """
    cpu = default = functools.partial(conv_time_taps, stride=stride, padding=padding)
    cubic = kernel.shape[:3] == (3, 3, 3) and stride == (1, 1) and padding == "SAME"
    if cubic and x.shape[2] * x.shape[3] >= LARGE_FRAME:
        cpu = conv_frame_by_frame
    if kernel.shape[:3] != (1, 1, 1) and x.shape[0] * _length(x, kernel, stride) < FULL_BATCH:
        default = functools.partial(conv_direct, stride=stride, padding=padding)
    if cpu is default:
        return cpu(x, kernel)
    # Chosen when lowering, so that compiling for a TPU on a CPU-only machine takes its form.
    return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _length(x: jax.Array, kernel: jax.Array, stride: tuple[int, int]) -> int:
    """Frames of the result."""
    return (x.shape[1] - kernel.shape[0]) // stride[0] + 1


def conv_direct(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """`conv_video` as the compiler's own 3-D convolution."""
    strides = (stride[0], stride[1], stride[1])
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[2:4], kernel.shape[1:3], strides[1:], padding)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        ((0, 0), *padding),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def conv_time_taps(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
) -> jax.Array:
    """`conv_video` as one 2-D convolution a time tap, the frames folded into the batch."""
    taps, length = kernel.shape[0], _length(x, kernel, stride)
    total = None
    for tap in range(taps):
        frames = x[:, tap : tap + (length - 1) * stride[0] + 1 : stride[0]]
        frames = frames.reshape(-1, *x.shape[2:])
        y = conv_image(frames, kernel[tap], stride[1], padding)
        total = y if total is None else total + y
    return total.reshape(x.shape[0], length, *total.shape[1:])


class Conv(nn.Module):
    """A convolution of video with a bias, causal in time if it is given the past.

    Attributes:
      features: output channels.
      kernel: frames, height and width of the kernel.
      stride: of time, and of height and width.
      padding: of height and width.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    kernel: tuple[int, int, int] = (1, 1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, past: Past | None = None) -> jax.Array:
        """[B, T, H, W, C] -> [B, T', H', W', features], without padding in time if past is None."""
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        names = (None, None, None, "conv_in", "conv_out")
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", fan_in, names, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, ("conv_out",), (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if past is not None:
            x, kernel = past.extend_or_cut(x, kernel)
        y = conv_video(x, kernel, stride=self.stride, padding=self.padding)
        return y + bias.astype(self.dtype).reshape(1, 1, 1, 1, -1)
