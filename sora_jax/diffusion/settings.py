"""What a model says about itself as a whole, such as how it samples unless told otherwise."""

import dataclasses
import math
import pathlib
from typing import Any

from sora_jax.diffusion.flow import token_shift
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.solvers import SOLVERS


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Attributes of the whole model, and the defaults of sampling.

    Attributes:
      fps: frame rate of what the model makes.
      text_length: tokens of a prompt.
      shift, shift_tokens: of the schedule, see `flow.token_shift`; without `shift_tokens` the shift
        is the same for every size.
      latent_limit: clean predictions stay within this many standard deviations; None for no limit.
      steps, guidance, solver: defaults of sampling; a number is guidance by the prompt alone.
      negative: the prompt that guidance leads away from, '' for none in particular.
      size, frames: default (width, height) and length.
      level_grid: number of discrete levels that the model was trained at, 1000 for Wan: the network
        is told levels rounded down to them, see also `solvers.schedule`. None for all levels.
      boundary: the level below which a second network takes over, see `experts`; None where there
        is no second.

    Raises:
      ValueError: a value that nothing can be sampled with.
    """

    fps: float
    text_length: int
    shift: float
    shift_tokens: int | None
    latent_limit: float | None
    steps: int
    guidance: Guidance
    solver: str
    size: tuple[int, int]
    frames: int
    level_grid: int | None = None
    negative: str = ""
    boundary: float | None = None

    def __post_init__(self):
        optional = ("shift_tokens", "latent_limit", "level_grid")
        for name in ("fps", "text_length", "shift", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} {value} must be positive")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r} is unknown; use one of {sorted(SOLVERS)}")
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps make nothing; use at least 1, such as 20")
        if not isinstance(self.guidance, Guidance):
            named = hasattr(self.guidance, "items")  # a mapping, of json or of a config
            parts = dict(self.guidance.items()) if named else {"text": self.guidance}
            object.__setattr__(self, "guidance", Guidance(**parts))
        if not isinstance(self.negative, str):
            raise ValueError(f"the negative prompt is {self.negative!r}: give one text for all")
        scales = {self.guidance.text, self.guidance.at_low_noise().text}
        if self.negative and scales == {1}:
            raise ValueError(
                "a negative prompt is what guidance by the prompt leads away from, and there is "
                "none at 1: ask for guidance of more, such as 5, or for the negative prompt ''"
            )
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ValueError(f"boundary {self.boundary} must be a level between 0 and 1")
        if self.boundary is None and self.guidance.text_low is not None:
            raise ValueError(
                f"guidance {self.guidance.text_low} at low noise is for models of two "
                "transformers, and this has one; leave it out"
            )
        if len(self.size) != 2:
            raise ValueError(f"size {self.size} must be (width, height), such as (96, 64)")

    def shift_for(self, tokens: int) -> float:
        """The schedule's shift for a clip of so many tokens of the transformer."""
        return token_shift(tokens, base=self.shift, base_tokens=self.shift_tokens)

    def override(self, **values: Any) -> "ModelSettings":
        """These settings with the given ones in their place; None leaves one as it is.

        A number as guidance changes that by the prompt, at all levels, and leaves the rest of it.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if not isinstance(given.get("guidance", self.guidance), Guidance):
            changes = {"text": given["guidance"], "text_low": None}
            given["guidance"] = dataclasses.replace(self.guidance, **changes)
        return dataclasses.replace(self, **given)


def read_settings(description: dict[str, Any], file: pathlib.Path) -> ModelSettings:
    """The settings in the description of a model.

    Args:
      description: JSON values by name, other names among them.
      file: that they are of, to be named.

    Raises:
      ValueError: one is missing or makes no sense.
    """
    fields = dataclasses.fields(ModelSettings)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    given = [field.name for field in fields if field.name in description]
    try:
        values = {name: description[name] for name in dict.fromkeys([*needed, *given])}
        return ModelSettings(**{**values, "size": tuple(values["size"])})
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}; write the model folder again") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; write the model folder again") from error
