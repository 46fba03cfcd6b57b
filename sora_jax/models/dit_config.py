"""Sizes of the diffusion transformer, and the operations it takes."""

import dataclasses

from sora_jax.models.sizes import check_positive, is_counts


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Sizes of the transformer; the defaults are those of Wan 2.1 T2V-1.3B.

    Attributes:
      width, layers, heads, mlp_width: of the transformer; width / heads is the head's width.
      latent_channels: channels of the latents in and out.
      patch: latent frames, rows and columns that make a token.
      text_width: width of the text features.
      time_features: sinusoids of the noise level.
      prediction: what the output is, "clean" or "velocity".
      image_channels: channels that images are given by beside the noise, 0 for none; in Wan 2.1 I2V
        20, of them 4 a mask and 16 latents.
      image_width: width of image tokens, which cross-attention sees beside the text, 0 for none;
        1280 in Wan 2.1 I2V, whose tokens are CLIP's.
      image_positions: number of image tokens that have a position of their own, those of a first
        and a last frame; 0 for none.

    Raises:
      ValueError: a size is not positive, or sizes do not fit each other.
    """

    width: int = 1536
    layers: int = 30
    heads: int = 12
    mlp_width: int = 8960
    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_width: int = 4096
    time_features: int = 256
    prediction: str = "clean"
    image_channels: int = 0
    image_width: int = 0
    image_positions: int = 0

    def __post_init__(self):
        check_positive(self, "width", "layers", "heads", "mlp_width")
        check_positive(self, "latent_channels", "text_width", "time_features")
        if not is_counts(self.patch) or len(self.patch) != 3:
            raise ValueError(
                f"DiTConfig.patch is {self.patch}; it must be three numbers of at least 1: latent "
                "frames, rows and columns, such as (1, 2, 2)"
            )
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} over {self.heads} heads gives no even head width; "
                "choose heads that divide half the width"
            )
        if self.prediction not in ("clean", "velocity"):
            raise ValueError(f"prediction {self.prediction!r} must be 'clean' or 'velocity'")
        for name in ("image_channels", "image_width", "image_positions"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"DiTConfig.{name} is {value!r}; use 0 for none")
        for name, needed in (("image_width", "channels"), ("image_positions", "width")):
            if getattr(self, name) and not getattr(self, f"image_{needed}"):
                raise ValueError(
                    f"DiTConfig.{name} is {getattr(self, name)} without image_{needed}; set both, "
                    "or neither"
                )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def sees_last(self) -> bool:
        """Whether what it sees of a clip beside the noise is the last frame besides the first."""
        return self.image_positions > 0

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens along time, height and width of latents [T, h, w]."""
        return tuple(-(-size // patch) for size, patch in zip(latent_shape, self.patch))


def flops(
    config: DiTConfig, tokens: int, text_tokens: int, frames: int = 1, image_tokens: int = 0
) -> int:
    """Floating-point operations of one forward pass of one clip (a multiply-add is two)."""
    d, n, m = config.width, tokens, text_tokens + image_tokens
    patch = config.patch[0] * config.patch[1] * config.patch[2]
    block = 2 * n * d * (4 * d + 2 * d + 2 * config.mlp_width) + 2 * m * d * 2 * d
    ends = 2 * n * d * patch * (2 * config.latent_channels + config.image_channels)
    ends += 2 * text_tokens * (config.text_width * d + d * d)
    ends += 2 * image_tokens * config.image_width * (config.image_width + d)
    ends += 2 * frames * (config.time_features * d + d * d + 6 * d * d)
    return config.layers * block + attention_flops(config, tokens, m) + ends


def attention_flops(config: DiTConfig, tokens: int, text_tokens: int) -> int:
    """Those of `flops` that are no product with weights: scores, and sums of values by them."""
    return config.layers * 4 * tokens * (tokens + text_tokens) * config.width
