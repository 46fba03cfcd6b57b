"""Between stored pixels and what the networks see."""

import jax
import jax.numpy as jnp


def to_float(frames: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [-1, 1]; float32 is that already."""
    if frames.dtype == jnp.float32:
        return frames
    return frames.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(frames: jax.Array) -> jax.Array:
    """Pixels to uint8; what lies outside [-1, 1] is clipped."""
    return jnp.round((jnp.clip(frames, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
