"""What the transformer's blocks see of a prompt and of an image, made once a video."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.dit_blocks import Text, project_heads
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.layers import Dense, LayerNorm, scan_blocks
from sora_jax.models.parameters import parameter


class KeysAndValues(nn.Module):
    """Keys and values of one block for embedded tokens; scanned, so with a carry."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, carry: None, text: jax.Array, image: jax.Array | None) -> tuple[None, Text]:
        """Text [B, L, D] and image [B, M, D]."""
        keys = project_heads(self, "key", text, normed=True)
        result = Text(keys, project_heads(self, "value", text, normed=False))
        if image is None:
            return carry, result
        keys = project_heads(self, "image_key", image, normed=True)
        values = project_heads(self, "image_value", image, normed=False)
        return carry, result._replace(image_keys=keys, image_values=values)


class ImageIn(nn.Module):
    """Image tokens [B, M, image_width] to [B, M, D]: an MLP between two norms."""

    config: DiTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.config, self.dtype
        if cfg.image_positions:
            zeros, shape = nn.initializers.zeros, (cfg.image_positions, cfg.image_width)
            x = x + parameter(self, "positions", zeros, (None, "embed"), shape)[None]
        x = LayerNorm(name="norm_in")(x).astype(dtype)
        x = Dense(cfg.image_width, (None, "embed"), name="mlp_in", dtype=dtype)(x)
        x = nn.gelu(x, approximate=False)
        x = Dense(cfg.width, ("embed", None), name="mlp_out", dtype=dtype)(x)
        return LayerNorm(name="norm_out")(x).astype(dtype)


class TextReader(nn.Module):
    """What every block sees of a prompt, and of the tokens of an image.

    It does not depend on the noise: once a video will do.
    """

    config: DiTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array, image: jax.Array | None = None) -> Text:
        """Keys and values of features.

        Args:
          text: [B, L, text_width], zeros after the prompt's end.
          image: tokens [B, M, image_width], in a model with image_width only.

        Raises:
          ValueError: image tokens are missing, or too many.
        """
        cfg, dtype = self.config, self.dtype
        if (image is None) != (cfg.image_width == 0):
            raise ValueError(
                f"image_width is {cfg.image_width}, and image tokens are "
                f"{'missing' if image is None else 'given'}: a model reads them if it is not 0"
            )
        if image is not None:
            image = ImageIn(cfg, dtype, name="image_in")(image)
        text = Dense(cfg.width, (None, "embed"), name="text_in", dtype=dtype)(text.astype(dtype))
        text = nn.gelu(text, approximate=True)
        text = Dense(cfg.width, ("embed", None), name="text_out", dtype=dtype)(text)
        # Its weights are gathered again in the backward pass: all blocks' would be kept whole.
        block = nn.remat(KeysAndValues, prevent_cse=False)
        blocks = scan_blocks(block, cfg.layers, nn.broadcast)
        return blocks(cfg, dtype, name="blocks")(None, text, image)[1]
