"""Clips of any length and frames of any size through the VAE, in the memory of a part of them."""

from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.models.pixels import to_float, to_uint8
from sora_jax.models.vae import VAE, encode_frames, normalise
from sora_jax.models.vae_config import VAEConfig
from sora_jax.models.vae_stream import Step, in_chunks
from sora_jax.models.vae_tiles import in_tiles

# Pixels of a clip up to which its frames are encoded at once. Chunk by chunk is no slower, but
# takes longer to compile.
WHOLE_CLIP = 2**20
# Pixels of a frame beyond which it is taken in tiles of this side, which overlap by so much.
WHOLE_FRAME = 2**20
TILE, OVERLAP = 768, 128


def encode_clip(
    config: VAEConfig,
    params: Any,
    frames: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """As `encode_frames`; chunk by chunk beyond WHOLE_CLIP, in tiles beyond WHOLE_FRAME."""
    _, length, height, width, _ = frames.shape
    if length * height * width <= WHOLE_CLIP:
        return encode_frames(config, params, frames, mean, std, dtype)

    def step(chunk: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        vae = VAE(config, dtype)
        latents, _, carry = vae.apply({"params": params}, to_float(chunk), carry, method="encode")
        return latents, carry

    def run(frames: jax.Array, _: None) -> tuple[jax.Array, None]:
        return in_chunks(step, frames, config.temporal_stride, 1), None

    if height * width > WHOLE_FRAME:
        stride = config.spatial_stride
        latents, _ = in_tiles(run, frames, None, **_tiles(config), taken=stride, given=1)
    else:
        latents, _ = run(frames, None)
    return normalise(latents, mean, std)


def decode_clip(config: VAEConfig, params: Any, z: jax.Array) -> jax.Array:
    """Frames uint8 [B, F, H, W, 3] of latents [B, T, h, w, C], decoded one latent frame at a time.

    Large frames are decoded in tiles, each from the first to the last frame, so that only the
    carry of one tile is held; frames of all tiles are then held as float32.
    """
    step = _decoder(config, params)

    def run(z: jax.Array, _: None) -> tuple[jax.Array, None]:
        return in_chunks(step, z, 1, config.temporal_stride), None

    if _is_large(config, z):
        stride = config.spatial_stride
        frames, _ = in_tiles(run, z, None, **_tiles(config), taken=1, given=stride)
        return to_uint8(frames)
    return in_chunks(_to_pixels(step), z, 1, config.temporal_stride)


def decode_piece(
    config: VAEConfig, params: Any, z: jax.Array, carry: Any = None
) -> tuple[jax.Array, Any]:
    """Frames uint8 [B, F, H, W, 3] of the latents that come next, and the carry.

    The carry is that of `VAE.decode`, or of all tiles of a large frame.
    """
    step = _decoder(config, params)
    if not _is_large(config, z):
        return _to_pixels(step)(z, carry)
    stride = config.spatial_stride
    frames, carry = in_tiles(step, z, carry, **_tiles(config), taken=1, given=stride)
    return to_uint8(frames), carry


def _decoder(config: VAEConfig, params: Any) -> Step:
    def step(z: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        return VAE(config).apply({"params": params}, z, carry, method="decode")

    return step


def _to_pixels(step: Step) -> Step:
    def run(z: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        frames, carry = step(z, carry)
        return to_uint8(frames), carry

    return run


def _is_large(config: VAEConfig, z: jax.Array) -> bool:
    return z.shape[2] * z.shape[3] * config.spatial_stride**2 > WHOLE_FRAME


def _tiles(config: VAEConfig) -> dict[str, int]:
    """Side and overlap of tiles in latents."""
    return {"tile": TILE // config.spatial_stride, "overlap": OVERLAP // config.spatial_stride}
