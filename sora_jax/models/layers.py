"""The small parts that the models share: dense layers with named axes, norms, time sinusoids."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.parameters import parameter
from sora_jax.sharding import gather, is_split


class Dense(nn.Module):
    """A linear layer whose kernel [input, output] carries logical axes.

    Attributes:
      features: output width.
      axes: logical names of the kernel's two dimensions, resolved by `sora_jax.sharding`.
      dtype: compute dtype; parameters are float32; when sampling they may be less, and the
        kernel a QArray of qwix (`weights.int8`).
      bias: whether to add one.
      zeros: start from a zero kernel, for layers whose output is first to be silent.
      spread: deviation of the kernel that it starts from; that of Xavier and Bengio if None.

    Where the collection "lora" has "a" and "b" for this layer, they are added, see `models.lora`.
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: jnp.dtype
    bias: bool = True
    zeros: bool = False
    spread: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., input] to [..., features] in the compute dtype."""
        zeros = nn.initializers.zeros
        init = zeros if self.zeros else nn.initializers.xavier_uniform()
        if self.spread is not None:
            init = nn.initializers.normal(self.spread)
        kernel = parameter(self, "kernel", init, self.axes, (x.shape[-1], self.features))
        x = x.astype(self.dtype)
        y = _matmul(x, gather(dequantise(kernel), self.axes, self.dtype))
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name) for name in ("a", "b"))
            low = _matmul(x, gather(a, (self.axes[0], None), self.dtype))
            y = y + _matmul(low, gather(b, (None, self.axes[1]), self.dtype))
        if not self.bias:
            return y
        bias = parameter(self, "bias", zeros, self.axes[1:], (self.features,))
        bias = gather(bias, self.axes[1:], self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., input] times a kernel [input, output].

    Where no mesh splits them, the leading axes become one: over several, XLA on CPU turns around
    what the kernel's gradient is made of, and takes twice as long.
    """
    if is_split():
        return jnp.matmul(x, kernel)
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def dequantise(kernel: Any) -> jax.Array:
    """The matrix that a QArray of qwix stands for, float32; an array is given back."""
    if not hasattr(kernel, "qvalue"):
        return kernel
    import qwix  # for nothing else, and it takes a while

    return qwix.dequantize(kernel)


def scan_blocks(block: type[nn.Module], layers: int, in_axes: Any = 0) -> type[nn.Module]:
    """The block `layers` times, one after the other, its parameters stacked."""
    return nn.scan(
        block,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """LayerNorm without affine parameters over the last axis, in float32 and returned so."""
    return _standardise(x.astype(jnp.float32), eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardise(x: jax.Array, eps: float) -> jax.Array:
    """x less its mean over its standard deviation, along the last axis.

    Its gradient is written out: with two sums over each row, it takes fewer passes through memory
    than what autodiff makes of the lines below.
    """
    return _standardise_forward(x, eps)[0]


def _standardise_forward(x, eps):
    # Both means in one pass, about a value of the row, so that a large mean costs no digits.
    x = x - x[..., :1]
    mean, square = jnp.mean(x, axis=-1, keepdims=True), jnp.mean(x * x, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + eps)
    y = (x - mean) * rate
    return y, (y, rate)


def _standardise_backward(eps, saved, grad):
    y, rate = saved
    mean = jnp.mean(grad, axis=-1, keepdims=True)
    along = jnp.mean(grad * y, axis=-1, keepdims=True)
    return ((grad - mean - y * along) * rate,)


_standardise.defvjp(_standardise_forward, _standardise_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with the learned scale and bias of PyTorch's: float32, as is its result."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = parameter(self, "scale", nn.initializers.ones, ("embed",), x.shape[-1:])
        bias = parameter(self, "bias", nn.initializers.zeros, ("embed",), x.shape[-1:])
        broadcast = (1,) * (x.ndim - 1) + (-1,)
        return layer_norm(x, 1e-5) * scale.reshape(broadcast) + bias.reshape(broadcast)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = 1e-6) -> jax.Array:
    """RMSNorm with a learned gain over the last axis, in float32 (arXiv 1910.07467)."""
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def sinusoids(t: jax.Array, width: int, *, scale: float = 1000.0) -> jax.Array:
    """Sinusoidal features of a noise level: [...] -> float32 [..., width], cosines then sines.

    Frequencies fall from 1 to 1/10,000 (arXiv 2006.11239); `scale` lifts levels in [0, 1] to the
    range that these frequencies were made for.
    """
    half = width // 2
    rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = scale * t.astype(jnp.float32)[..., None] * rates.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def patchify(x: jax.Array, patch: Sequence[int]) -> jax.Array:
    """[B, T, H, W, C] -> [B, T/pt, H/ph, W/pw, pt ph pw C], each patch laid out (pt, ph, pw, C)."""
    pt, ph, pw = patch
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, t // pt, h // ph, w // pw, pt * ph * pw * c)


def unpatchify(x: jax.Array, patch: Sequence[int]) -> jax.Array:
    """The inverse of `patchify`."""
    pt, ph, pw = patch
    b, t, h, w, d = x.shape
    c = d // (pt * ph * pw)
    x = x.reshape(b, t, h, w, pt, ph, pw, c)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, t * pt, h * ph, w * pw, c)
