"""Which noise levels training draws."""

import dataclasses
import math

from sora_jax.diffusion.flow import level_share

# Of the levels that are drawn, the least that one of two transformers may be asked at.
_LEAST = 0.01


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """How training draws noise levels, and how sampling spaces them.

    Attributes:
      mean, std: of the logit of the level, before the shift.
      shift, shift_tokens: the shift at that many tokens; it grows with their square root, or is the
        same for all where `shift_tokens` is None.
      floor: level from which on the loss of a clean prediction weighs 1 / level^2, and no more
        below. A small model with little time learns more of what matters with a high one.

    Raises:
      ValueError: one but the mean is not positive, or one is not finite.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    shift_tokens: int | None = 100
    floor: float = 0.05

    def __post_init__(self):
        for name in ("std", "shift", "shift_tokens", "floor"):
            value = getattr(self, name)
            if name == "shift_tokens" and value is None:
                continue
            if value is None or not 0 < value < math.inf:
                raise ValueError(
                    f"config.noise.{name}={value} must be positive, such as "
                    f"{getattr(NoiseConfig, name)}"
                )
        if not math.isfinite(self.mean):
            raise ValueError(f"config.noise.mean={self.mean} must be a number, such as 0.0")


def level_shares(
    noise: NoiseConfig, between: tuple[float, float], shift: float
) -> tuple[float, float]:
    """Of all levels in their order, the shares below two of them, see `flow.draw_levels`.

    Args:
      noise: what draws them.
      between: levels that one of two transformers is asked at, see `experts.levels_of`.
      shift: of the levels.

    Raises:
      ValueError: next to none is drawn between the two.
    """
    low, high = (
        level_share(level, mean=noise.mean, std=noise.std, shift=shift) for level in between
    )
    if high - low < _LEAST:
        raise ValueError(
            f"config.noise with mean={noise.mean} and std={noise.std}, and a shift of {shift:.4g}, "
            f"draws {high - low:.2%} of its levels from {between[0]:g} to {between[1]:g}, "
            "where the transformer of config.expert is asked; move the mean, or widen it by std"
        )
    return low, high
