"""The 3x3x3 convolution for CPUs: a loop over frames, forward and backward.

Whole clips stream through memory three times as XLA's own forms go; one frame at a time stays in
the cache, and the gradient of the kernel becomes plain matrix products. Two to four times as fast
as the 3-D convolution of XLA, with one frame of temporaries.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sora_jax.models.conv_image import conv_image


@jax.custom_vjp
def conv_frame_by_frame(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, T + 2, H, W, C] by [3, 3, 3, C, D] -> [B, T, H, W, D], same padding in space."""
    b, padded, h, w, _ = x.shape
    length, features = padded - 2, kernel.shape[-1]
    # The three time taps side by side on the input channels: one convolution a frame.
    taps = kernel.transpose(1, 2, 0, 3, 4).reshape(3, 3, -1, features)

    def frame(i: jax.Array, out: jax.Array) -> jax.Array:
        near = lax.dynamic_slice_in_dim(x, i, 3, axis=1)
        near = jnp.concatenate([near[:, 0], near[:, 1], near[:, 2]], axis=-1)
        return lax.dynamic_update_slice_in_dim(out, conv_image(near, taps)[:, None], i, axis=1)

    return lax.fori_loop(0, length, frame, jnp.zeros((b, length, h, w, features), x.dtype))


def _input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Each frame of the cotangent meets the three taps at once; partial sums ride along."""
    b, length, h, w, features = g.shape
    channels = kernel.shape[3]
    taps = kernel[:, ::-1, ::-1].transpose(1, 2, 4, 0, 3).reshape(3, 3, features, 3 * channels)

    def frame(i: jax.Array, carry: tuple) -> tuple:
        out, now, after = carry
        y = conv_image(lax.dynamic_index_in_dim(g, i, axis=1, keepdims=False), taps)
        first, second, third = jnp.split(y, 3, axis=-1)
        out = lax.dynamic_update_slice_in_dim(out, (now + first)[:, None], i, axis=1)
        return out, after + second, third

    zero = jnp.zeros((b, h, w, channels), g.dtype)
    out = jnp.zeros((b, length + 2, h, w, channels), g.dtype)
    out, now, after = lax.fori_loop(0, length, frame, (out, zero, zero))
    out = lax.dynamic_update_slice_in_dim(out, now[:, None], length, axis=1)
    return lax.dynamic_update_slice_in_dim(out, after[:, None], length + 1, axis=1)


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Horizontal taps as columns, vertical ones as slices of rows, time on the cotangent's side."""
    h, w, features = g.shape[2:]
    channels = x.shape[-1]
    g = jnp.pad(g, ((0, 0), (2, 2), (0, 0), (0, 0), (0, 0)))

    def frame(i: jax.Array, total: jax.Array) -> jax.Array:
        now = lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
        now = jnp.pad(now, ((0, 0), (1, 1), (1, 1), (0, 0)))
        near = lax.dynamic_slice_in_dim(g, i, 3, axis=1)
        near = jnp.concatenate([near[:, 2], near[:, 1], near[:, 0]], axis=-1)
        columns = jnp.concatenate([now[:, :, k : k + w] for k in range(3)], axis=-1)
        rows = [jnp.einsum("bhwi,bhwo->io", columns[:, k : k + h], near) for k in range(3)]
        return total + jnp.stack(rows).astype(jnp.float32)

    total = jnp.zeros((3, 3 * channels, 3 * features), jnp.float32)
    total = lax.fori_loop(0, x.shape[1], frame, total)
    return total.reshape(3, 3, channels, 3, features).transpose(3, 0, 1, 2, 4)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return conv_frame_by_frame(x, kernel), (x, kernel)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _input_gradient(g, kernel), _kernel_gradient(x, g).astype(kernel.dtype)


conv_frame_by_frame.defvjp(_forward, _backward)
