"""How strongly sampling follows its prompt, and the frames that it is given.

The network is asked about the same noisy latents several times, each time told more: nothing, then
the given frames, then the prompt as well (a negative prompt takes the place of none). What each
piece of news changes is enlarged.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.flow import expand, shift_levels


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Scales of guidance, and where it acts.

    Attributes:
      text: scale of classifier-free guidance by the prompt (arXiv 2207.12598); 1 is none.
      given: scale of guidance by the frames that are given and kept (arXiv 2502.06764); 1 is none.
        Nothing is given in videos from text alone, long ones and loops among them.
      interval: lowest and highest share of the sampling path, 0 clean and 1 noise, between which
        there is guidance (arXiv 2404.07724). Outside it the network is asked once a step only.
      rescale: how far a clip's standard deviation, which guidance enlarges, is brought back to that
        of the prediction without guidance, 0 to 1 (arXiv 2305.08891).
      text_low: `text` of the network for low noise in a model of two, see `experts`; None for the
        same as of the other.

    Raises:
      ValueError: a scale that is negative or not finite, or shares outside [0, 1].
    """

    text: float = 1.0
    given: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    text_low: float | None = None

    def __post_init__(self):
        scales = {name: getattr(self, name) for name in ("text", "given", "rescale")}
        if self.text_low is not None:
            scales["text_low"] = self.text_low
        if not _are_numbers(scales.values()) or not _are_numbers(self.interval):
            raise ValueError(
                f"{scales} and the interval {self.interval!r} are no guidance: three "
                "numbers, and an interval of two"
            )
        for name, number in scales.items():
            object.__setattr__(self, name, float(number))
        object.__setattr__(self, "interval", tuple(float(share) for share in self.interval))
        low = self.text_low
        for name, value in (
            ("guidance", self.text),
            ("guidance by given frames", self.given),
            ("guidance at low noise", self.text if low is None else low),
        ):
            if not (0 <= value < 1000 and math.isfinite(value)):
                raise ValueError(f"{name} {value} is out of range; use 1 to 20")
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(
                f"the interval of guidance {self.interval} must be two shares of the sampling "
                "path, the lower one first, such as (0.1, 0.9)"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"the rescaling of guidance {self.rescale} must lie in 0 to 1")

    @property
    def has_interval(self) -> bool:
        return self.interval != (0.0, 1.0)

    @property
    def is_without_prompt(self) -> bool:
        """Whether neither network is guided by the prompt, so that a negative one has no use."""
        return self.text == self.at_low_noise().text == 1

    def with_text(self, text: float) -> "Guidance":
        """The same with another scale by the prompt, of both networks."""
        return dataclasses.replace(self, text=text, text_low=None)

    def at_low_noise(self) -> "Guidance":
        """That of the network for low noise."""
        text = self.text if self.text_low is None else self.text_low
        return dataclasses.replace(self, text=text, text_low=None)


def _are_numbers(values: Any) -> bool:
    """Whether values are several numbers; text that spells one, and True, are none."""
    return (
        not isinstance(values, str)
        and isinstance(values, Iterable)
        and all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
    )


# A step that begins at the very edge of the interval is inside, whatever way that is rounded.
_EDGE = 1e-5


class Scales(NamedTuple):
    """A `Guidance` as arrays, which a compiled program takes without being compiled again."""

    text: jax.Array
    given: jax.Array
    low: jax.Array
    high: jax.Array
    rescale: jax.Array


def as_scales(guidance: Guidance, shift: float) -> Scales:
    """The numbers of a `Guidance`; its interval becomes levels, by the schedule's shift."""
    low, high = shift_levels(np.array(guidance.interval), shift)
    numbers = (guidance.text, guidance.given, low, high, guidance.rescale)
    return Scales(*(np.float32(number) for number in numbers))


class Told(NamedTuple):
    """What the network is told when it is asked."""

    prompt: bool
    frames: bool


def tellings(*, text: bool, given: bool) -> tuple[Told, ...]:
    """What to ask with for guidance by the prompt and by given frames; all of it comes last."""
    result = [Told(True, True)]
    if text:
        result.insert(0, Told(False, True))
    if given:
        result.insert(0, result[0]._replace(frames=False))
    return tuple(result)


def is_inside(t: jax.Array, scales: Scales) -> jax.Array:
    """Which levels, of frames that are not clean, lie in the interval: bool, shaped like t."""
    return (scales.low - _EDGE <= t) & (t <= scales.high + _EDGE) & (t > 0)


def guide(
    predictions: Sequence[jax.Array], told: Sequence[Told], t: jax.Array, scales: Scales
) -> jax.Array:
    """One prediction out of several.

    Args:
      predictions: clean latents [B, T, h, w, C], one for each of `told`.
      told: of `tellings`.
      t: levels [B, T]; frames outside the interval have scales of 1.
      scales: of guidance; its rescaling is for `restore_spread`.
    """
    result = predictions[0]
    inside = is_inside(t, scales)
    for before, after, less, more in zip(predictions, predictions[1:], told, told[1:]):
        scale = scales.given if more.frames > less.frames else scales.text
        scale = jnp.where(inside, scale, 1.0)
        result = result + expand(scale, result) * (after - before)
    return result


def restore_spread(guided: jax.Array, plain: jax.Array, t: jax.Array, scales: Scales) -> jax.Array:
    """Brings the standard deviation of what is guided some way back to that without guidance.

    Args:
      guided, plain: predictions [B, T, h, w, C] with and without guidance.
      t: levels [B, T]; only frames inside the interval count, and change.
      scales: of guidance.
    """
    inside = jnp.broadcast_to(expand(is_inside(t, scales), guided), guided.shape)
    axes = tuple(range(1, guided.ndim))
    before, after = (jnp.std(v, axes, keepdims=True, where=inside) for v in (guided, plain))
    factor = 1.0 + scales.rescale * (after / jnp.maximum(before, 1e-6) - 1.0)
    return jnp.where(inside, guided * factor, guided)
