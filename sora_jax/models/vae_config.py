"""Sizes of the VAE, and which clips they can compress."""

import dataclasses

from sora_jax.models.sizes import check_positive, is_counts


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the network; the defaults are Wan 2.1's.

    Wan 2.2's differ in encoder_width 160, decoder_width 256, latent_channels 48, patch 2 and
    shortcuts True.

    Attributes:
      encoder_width, decoder_width: channels of the finest level.
      multipliers: width of each level, finest first; each but the last halves height and width.
      blocks: residual blocks a level going down; going up there is one more.
      temporal: for each halving, whether it also halves the frame rate, finest first.
      latent_channels: channels of the latents.
      patch: pixels of a square folded into channels before the network, as in Wan 2.2.
      shortcuts: whether averages of what enters a level are added to what leaves it going down,
        and copies going up, as in Wan 2.2; going up, halving the channels is then left to the
        level after.

    Raises:
      ValueError: a size is not positive, or the tuples do not fit each other.
    """

    encoder_width: int = 96
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    latent_channels: int = 16
    patch: int = 1
    shortcuts: bool = False

    def __post_init__(self):
        check_positive(self, "encoder_width", "decoder_width", "latent_channels", "patch")
        if type(self.blocks) is not int or self.blocks < 0:
            raise ValueError(
                f"VAEConfig.blocks is {self.blocks!r}; it must not be negative, nor a fraction"
            )
        if not is_counts(self.multipliers) or not self.multipliers:
            raise ValueError(
                f"VAEConfig.multipliers is {self.multipliers}; it must be a number of at least 1 "
                "for each level, such as (1, 2, 4)"
            )
        is_tuple = isinstance(self.temporal, tuple)
        if not is_tuple or not all(type(halved) is bool for halved in self.temporal):
            raise ValueError(
                f"VAEConfig.temporal is {self.temporal}; it must be True or False for each halving "
                "between levels, such as (True, True)"
            )
        if len(self.temporal) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal {self.temporal} must have one entry fewer than multipliers "
                f"{self.multipliers}: one for each halving between levels"
            )
        if type(self.shortcuts) is not bool:
            raise ValueError(f"VAEConfig.shortcuts is {self.shortcuts!r}; make it True or False")
        if self.shortcuts and not self._can_regroup():
            raise ValueError(
                f"multipliers {self.multipliers} do not suit shortcuts, which regroup channels "
                "evenly; double them or keep them, the last one kept, such as (1, 2, 4, 4)"
            )

    def _can_regroup(self) -> bool:
        """Whether the numbers of a box that becomes one are a multiple of its channels."""
        widths, boxes = self.multipliers, [4 * (1 + halved) for halved in self.temporal]
        down = zip((widths[0], *widths), widths, (*boxes, 1))
        up = zip(widths[1:], (*widths[2:], widths[-1]), boxes)
        return all(many * box % few == 0 for many, few, box in (*down, *up))

    @property
    def spatial_stride(self) -> int:
        """Pixels of a side that become one latent."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames after the first that become one latent frame."""
        return 2 ** sum(self.temporal)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[T, h, w, C] of the latents of a clip.

        Raises:
          ValueError: frames that are not 1 + 4k, or a size that does not divide.
        """
        time, space = self.temporal_stride, self.spatial_stride
        if frames < 1 or (frames - 1) % time:
            low = max(1, (frames - 1) // time * time + 1)
            raise ValueError(
                f"{frames} frames cannot be compressed: a clip has 1 + {time}k frames, "
                f"the nearest are {low} and {low + time}"
            )
        for name, size in (("height", height), ("width", width)):
            if size < space or size % space:
                low = max(space, size // space * space)
                raise ValueError(
                    f"{name} {size} cannot be compressed: it must be a multiple of {space}, "
                    f"the nearest are {low} and {low + space}"
                )
        return (1 + (frames - 1) // time, height // space, width // space, self.latent_channels)
