"""Models of two networks: one for high noise, which makes the layout, and one for low noise.

The schedule decides which of the two a step asks. Each has a stretch of it, one after the other, so
that no more than one of them is needed at a time.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.settings import ModelSettings

# Parts of a model: the only transformer, or that for high noise; and that for low noise.
HIGH, LOW = "dit", "dit_low"
# What a run calls the one that it trains.
EXPERTS = {"high": HIGH, "low": LOW}


class Stretch(NamedTuple):
    """A piece of a schedule that one network is asked for.

    Attributes:
      part: of the model.
      levels: of its steps, from where it takes over to where it ends.
      guidance: of its steps.
    """

    part: str
    levels: jax.Array | np.ndarray
    guidance: Guidance


def split(levels: jax.Array | np.ndarray, settings: ModelSettings) -> list[Stretch]:
    """The stretches of a schedule in their order, without those that have no steps.

    The network for low noise takes the steps at whose beginning it would be told a level below the
    boundary.

    Args:
      levels: [steps + 1] or [steps + 1, T], as `solvers.solve` takes them.
      settings: of the model, or of a call.

    Raises:
      ValueError: frames at levels of their own, and two networks.
    """
    if settings.boundary is None:
        return [Stretch(HIGH, levels, settings.guidance)]
    if levels.ndim > 1:
        raise ValueError(
            "frames at levels of their own, as in a window that rolls along, are beyond models of "
            "two transformers, one for high noise and one for low; ask for fewer frames, or make "
            "them go on with extend"
        )
    told, boundary = np.asarray(levels[:-1], np.float32), settings.boundary
    if settings.level_grid is not None:
        told, boundary = np.floor(told * settings.level_grid), boundary * settings.level_grid
    count = int((told >= boundary).sum())
    stretches = [
        Stretch(HIGH, levels[: count + 1], settings.guidance),
        Stretch(LOW, levels[count:], settings.guidance.at_low_noise()),
    ]
    return [stretch for stretch in stretches if len(stretch.levels) > 1]


def levels_of(part: str, boundary: float, level_grid: int | None) -> tuple[float, float]:
    """Levels that a network of two is asked at: from the first, below the second.

    The network for high noise is asked at 1 too.

    Args:
      part: HIGH or LOW.
      boundary, level_grid: of the model, see `ModelSettings`.
    """
    if level_grid is not None:  # what is compared are levels as they are told
        boundary = math.ceil(boundary * level_grid) / level_grid
    return (boundary, 1.0) if part == HIGH else (0.0, boundary)


def inside(low: float, high: float) -> tuple[np.float32, np.float32]:
    """The lowest and the highest float32 level of a range of `levels_of`, for what is rounded."""
    one = np.float32(1)
    return (
        np.nextafter(np.float32(low), one) if low > 0 else np.float32(0),
        np.nextafter(np.float32(high), -one) if high < 1 else one,
    )
