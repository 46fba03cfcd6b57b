"""Images as channels beside the noise: latents of a clip that is grey but for them, and a mask."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image_pixels import seen_places
from sora_jax.models.pixels import to_float
from sora_jax.models.vae_clips import encode_clip
from sora_jax.models.vae_config import VAEConfig


def encode_images(
    config: VAEConfig,
    params: Any,
    images: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    *,
    at: Sequence[int],
    frames: int,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """Normalised latents [B, T, h, w, C] of clips of these images and grey frames.

    Args:
      config, params: of the VAE.
      images: uint8 [B, n, H, W, 3].
      mean, std: [C], of latents.
      at: the n frames where the images are.
      frames: of the clip.
      dtype: that the VAE computes in.
    """
    grey = jnp.zeros((len(images), frames, *images.shape[2:]))
    clips = grey.at[:, jnp.array(at)].set(to_float(images))
    return encode_clip(config, params, clips, mean, std, dtype)


def see_frames(
    dit: DiTConfig,
    config: VAEConfig,
    params: Any,
    frames: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """`encode_images` of a clip's own frames uint8 [B, F, H, W, 3], at `seen_places`."""
    count = frames.shape[1]
    at = seen_places(count, last=dit.sees_last)
    images = frames[:, jnp.array(at)]
    return encode_images(config, params, images, mean, std, at=at, frames=count, dtype=dtype)


def with_mask(latents: jax.Array, *, at: Sequence[int], frames: int) -> jax.Array:
    """Channels [B, T, h, w, stride + C] of latents [B, T, h, w, C]: the mask, and these.

    The mask says of every frame of a latent frame whether it is an image, of the first, which is
    alone, as often as of the others.

    Args:
      latents: of `encode_images`.
      at, frames: as there.
    """
    stride = (frames - 1) // (latents.shape[1] - 1)
    given = jnp.zeros(frames).at[jnp.array(at)].set(1.0)
    mask = jnp.concatenate([jnp.repeat(given[:1], stride), given[1:]])
    shape = (*latents.shape[:4], stride)
    mask = jnp.broadcast_to(mask.reshape(1, shape[1], 1, 1, stride), shape)
    return jnp.concatenate([mask, latents], axis=-1)
