"""The diffusion transformer over spacetime patches, in the shape of Wan's, with a level per frame.

Noisy latents and the noise level of every latent frame go in; the clean latents (or the velocity)
come out. Any grid of latents is a valid input: position enters only through rotary angles, and a
patch that reaches over the edge is filled up with what lies at the edge.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.dit_blocks import TOKENS, Block, Text, modulate
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.layers import Dense, layer_norm, patchify, scan_blocks, sinusoids, unpatchify
from sora_jax.models.parameters import parameter
from sora_jax.models.remat import REMAT
from sora_jax.models.rope import rope_angles
from sora_jax.models.text_reader import TextReader
from sora_jax.sharding import constrain, ways


class DiT(nn.Module):
    """The whole transformer.

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters, the residual stream, norms and modulation are float32.
      remat: a key of REMAT: what the backward pass keeps of each block.
    """

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, text: jax.Array | Text, image: jax.Array | None = None
    ) -> jax.Array:
        """The prediction for noisy latents.

        Args:
          x: float32 [B, T, h, w, C], behind whose C = latent_channels those of images follow where
            the model takes any: C = latent_channels + image_channels.
          t: noise levels [B, T] in [0, 1], 0 clean.
          text: features [B, L, text_width], zeros after the prompt's end, or what a `TextReader`
            with the parameters "text_reader" made of them, and of the image.
          image: tokens [B, M, image_width] beside features of text, if the model reads any.

        Returns:
          float32 [B, T, h, w, latent_channels]: clean latents or velocity, by `config.prediction`.
        """
        cfg, dtype = self.config, self.dtype
        grid = cfg.grid(x.shape[1:4])
        if not isinstance(text, Text):
            text = TextReader(cfg, dtype, name="text_reader")(text, image)

        time = sinusoids(t[:, :: cfg.patch[0]], cfg.time_features)
        time = Dense(cfg.width, (None, "embed"), name="time_in", dtype=jnp.float32)(time)
        time = Dense(cfg.width, ("embed", None), name="time_out", dtype=jnp.float32)(nn.silu(time))
        levels = nn.remat(Dense)(
            6 * cfg.width, ("embed", None), name="time_levels", dtype=jnp.float32, zeros=True
        )(nn.silu(time))
        levels = levels.reshape(*levels.shape[:2], 6, cfg.width)

        shape = x.shape
        missing = [(0, n * p - size) for n, p, size in zip(grid, cfg.patch, shape[1:4])]
        x = jnp.pad(x, [(0, 0), *missing, (0, 0)], mode="edge")
        x = patchify(x, cfg.patch).reshape(shape[0], grid[0], grid[1] * grid[2], -1)
        angles = rope_angles(tuple(jnp.arange(n) for n in grid), cfg.head_width)
        x, angles, mask = _fill_up(x, angles.reshape(*x.shape[1:3], -1))

        x = constrain(x, TOKENS)
        x = Dense(cfg.width, (None, "embed"), name="patch_in", dtype=dtype)(x.astype(dtype))
        x = constrain(x.astype(jnp.float32), TOKENS)

        policy = REMAT[self.remat]
        block = nn.remat(Block, prevent_cse=False, policy=policy) if policy else Block
        blocks = scan_blocks(block, cfg.layers, (0, *(nn.broadcast,) * 3))
        x, _ = blocks(cfg, dtype, name="blocks")(x, text, levels, angles, mask)

        zeros, axes = nn.initializers.zeros, (None, "embed")
        table = parameter(self, "head_modulation", zeros, axes, (2, cfg.width))
        shift, scale = jnp.moveaxis(time[:, :, None] + table[None, None], 2, 0)
        x = modulate(layer_norm(x), shift, scale).astype(dtype)
        features = cfg.latent_channels * cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
        x = Dense(features, ("embed", None), name="head", dtype=dtype, zeros=True)(x)
        x = x[:, :, : grid[1] * grid[2]].astype(jnp.float32)
        x = unpatchify(x.reshape(shape[0], *grid, -1), cfg.patch)
        return x[:, : shape[1], : shape[2], : shape[3]]


def _fill_up(x: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Places of x [B, T, S, C] and angles [T, S, d / 2] up to a number that the mesh divides.

    With them comes what attention may see, bool [B, T, S]; None if nothing is missing.
    """
    count = x.shape[2]
    more = -count % ways("tokens")
    if not more:
        return x, angles, None
    x = jnp.pad(x, [(0, 0), (0, 0), (0, more), (0, 0)])
    angles = jnp.pad(angles, [(0, 0), (0, more), (0, 0)])
    return x, angles, jnp.broadcast_to(jnp.arange(count + more) < count, x.shape[:3])


def init_dit(config: DiTConfig, key: jax.Array) -> dict:
    """Parameters (boxed with their logical axes) of a transformer."""
    x = jnp.zeros((1, *config.patch, config.latent_channels + config.image_channels))
    text = jnp.zeros((1, 1, config.text_width))
    inputs = [x, jnp.zeros((1, config.patch[0])), text]
    if config.image_width:
        inputs.append(jnp.zeros((1, config.image_positions or 1, config.image_width)))
    return DiT(config).init(key, *inputs)["params"]
