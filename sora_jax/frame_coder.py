"""Frames of a video to latents and back: what a model's VAE does, all at once or in pieces."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from sora_jax import generation
from sora_jax.models.vae import VAEConfig, denormalise
from sora_jax.weights.in_turn import InTurn

# Latents of more numbers are decoded a few latent frames at a time, so that memory does not grow
# with the duration.
WHOLE_DECODE = 40_000
CHUNK_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class FrameCoder:
    """A VAE, and the scale of its latents.

    Attributes:
      vae_config: sizes.
      params: parameters by part of the model, of which "vae" is used here; of an `InTurn`, one part
        at a time is in memory.
      latent_mean, latent_std: [C], of the latents.
    """

    vae_config: VAEConfig
    params: Mapping[str, Any] = dataclasses.field(repr=False)
    latent_mean: jax.Array
    latent_std: jax.Array

    def latent_shape(self, size: tuple[int, int], frames: int) -> tuple[int, int, int, int]:
        """[T, h, w, C] of a clip of `size` (width, height).

        Raises:
          ValueError: a size or length that the grid cannot hold; the message names the nearest.
        """
        width, height = size
        unit = self.vae_config.spatial_stride
        for name, side in zip(("width", "height"), size):
            if side < unit or side % unit:
                low = max(unit, side // unit * unit)
                raise ValueError(
                    f"{name} {side} does not fit the grid of the model: it must be a multiple of "
                    f"{unit}, the nearest are {low} and {low + unit}"
                )
        return self.vae_config.latent_shape(frames, height, width)

    def finish(self, made: Any) -> Any:
        """What a part makes; where parts take turns, when it is there and the part can go."""
        return jax.block_until_ready(made) if isinstance(self.params, InTurn) else made

    def encode(self, frames: np.ndarray) -> jax.Array:
        """Normalised latents [B, T, h, w, C] of frames uint8 [B, F, H, W, 3].

        Raises:
          ValueError: of another type or shape, or a size that the grid cannot hold.
        """
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [B, F, H, W, 3]"
            )
        self.vae_config.latent_shape(*frames.shape[1:4])
        mean, std = self.latent_mean, self.latent_std
        latents = generation.encode(self.vae_config, self.params["vae"], frames, mean, std)
        return self.finish(latents)

    def to_frames(self, latents: jax.Array) -> np.ndarray:
        """All frames of normalised latents at once, uint8 [B, F, H, W, 3]."""
        if latents[0].size <= WHOLE_DECODE:
            frames = next(self.decode(latents))
        else:
            z = denormalise(latents, self.latent_mean, self.latent_std)
            frames = generation.decode_all(self.vae_config, self.params["vae"], z)
        return np.array(frames)  # a copy, which may be written to

    def decode(self, latents: jax.Array) -> Iterator[np.ndarray]:
        """Frames of normalised latents, uint8 [B, f, H, W, 3] chunk by chunk in order."""
        chunk = latents.shape[1] if latents[0].size <= WHOLE_DECODE else CHUNK_FRAMES
        pieces = (latents[:, i : i + chunk] for i in range(0, latents.shape[1], chunk))
        return self.decode_pieces(pieces)

    def decode_pieces(self, pieces: Iterable[jax.Array]) -> Iterator[np.ndarray]:
        """Frames of a clip whose normalised latents come in pieces along time, piece by piece."""
        carry = None
        for latents in pieces:
            z = denormalise(latents, self.latent_mean, self.latent_std)
            frames, carry = generation.decode(self.vae_config, self.params["vae"], z, carry)
            yield np.asarray(frames)
