"""The 2-D convolution that those of video are made of."""

from collections.abc import Sequence

import jax


def conv_image(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str | Sequence = "SAME"
) -> jax.Array:
    """A 2-D convolution: [N, H, W, C] by [kh, kw, C, D]."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
