"""What a model says about itself as a whole, such as how it samples unless told otherwise."""

import dataclasses
import math
import numbers
import pathlib
from collections.abc import Callable
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
        optional = ("shift_tokens", "latent_limit", "level_grid", "boundary")
        for name, example in _POSITIVE.items():
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            whole = type(example) is int
            if not _is_number(value, whole=whole) or not 0 < value < math.inf:
                kind = "a whole number of at least 1" if whole else "a positive number"
                raise ValueError(f"{name} {value!r} must be {kind}, such as {example}")
        if not _is_number(self.frames, whole=True):
            raise ValueError(f"frames {self.frames!r} must be a whole number, such as 17")
        if not isinstance(self.solver, str) or self.solver not in SOLVERS:
            raise ValueError(f"solver {self.solver!r} is unknown; use one of {sorted(SOLVERS)}")
        if not isinstance(self.guidance, Guidance):
            object.__setattr__(self, "guidance", _as_guidance(self.guidance))
        if not isinstance(self.negative, str):
            raise ValueError(f"the negative prompt is {self.negative!r}: give one text for all")
        if self.negative and self.guidance.is_without_prompt:
            raise ValueError(
                "a negative prompt is what guidance by the prompt leads away from, and there is "
                "none at 1: ask for guidance of more, such as 5, or for the negative prompt ''"
            )
        if self.boundary is not None and not self.boundary < 1:
            raise ValueError(f"boundary {self.boundary} must be a level between 0 and 1")
        if self.boundary is None and self.guidance.text_low is not None:
            raise ValueError(
                f"guidance {self.guidance.text_low} at low noise is for models of two "
                "transformers, and this has one; leave it out"
            )
        sides = tuple(self.size) if isinstance(self.size, (tuple, list)) else ()
        if len(sides) != 2 or not all(_is_number(x, whole=True) and x > 0 for x in sides):
            raise ValueError(f"size {self.size} must be (width, height), such as (96, 64)")
        object.__setattr__(self, "size", sides)

    def shift_for(self, tokens: int) -> float:
        """The schedule's shift for a clip of so many tokens of the transformer."""
        return token_shift(tokens, base=self.shift, base_tokens=self.shift_tokens)

    def override(self, **values: Any) -> "ModelSettings":
        """These settings with the given ones in their place; None leaves one as it is.

        A number as guidance changes that by the prompt, at all levels, and leaves the rest of it.
        Where that leaves no guidance by the prompt, a negative prompt of these settings has no use.
        """
        given = {name: value for name, value in values.items() if value is not None}
        guidance = given.get("guidance", self.guidance)
        if hasattr(guidance, "items"):
            guidance = _as_guidance(guidance)
        elif not isinstance(guidance, Guidance):
            guidance = self.guidance.with_text(guidance)
        if guidance.is_without_prompt:
            given.setdefault("negative", "")
        return dataclasses.replace(self, **{**given, "guidance": guidance})

    def check_defaults(
        self, latent_shape: Callable[[int, int, int], Any], check_length: Callable[[str, int], Any]
    ) -> None:
        """Raises ValueError for a default that other parts of the model cannot take.

        Args:
          latent_shape: of the VAE, given frames, height and width; raises for those it has not.
          check_length: of the tokenizer, given a prompt and how many tokens it may have.
        """
        width, height = self.size
        for what, check in (
            (
                f"size {self.size} and frames {self.frames}",
                lambda: latent_shape(self.frames, height, width),
            ),
            ("negative", lambda: check_length(self.negative, self.text_length)),
        ):
            try:
                check()
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from error


# Settings that are positive, with an example; those whose example is whole are whole themselves.
_POSITIVE = {
    "fps": 16.0,
    "text_length": 512,
    "shift": 5.0,
    "shift_tokens": 100,
    "latent_limit": 6.0,
    "steps": 20,
    "level_grid": 1000,
    "boundary": 0.9,
}


def _is_number(value: Any, *, whole: bool = False) -> bool:
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_guidance(value: Any) -> Guidance:
    """Guidance of a number, or of a mapping, which json and a config have."""
    parts = dict(value.items()) if hasattr(value, "items") else {"text": value}
    known = [field.name for field in dataclasses.fields(Guidance)]
    unknown = sorted(set(parts) - set(known))
    if unknown:
        raise ValueError(f"guidance has no {unknown[0]!r}; it has {known}")
    return Guidance(**parts)


def read_settings(
    description: dict[str, Any],
    file: pathlib.Path,
    latent_shape: Callable[[int, int, int], Any],
    check_length: Callable[[str, int], Any],
) -> ModelSettings:
    """The settings in the description of a model, which its other parts can serve.

    Args:
      description, file: see `parse_settings`.
      latent_shape, check_length: of the VAE and of the tokenizer beside it, see
        `ModelSettings.check_defaults`.

    Raises:
      ValueError: what `parse_settings` raises, or one is nothing that the model can serve.
    """
    settings = parse_settings(description, file)
    try:
        settings.check_defaults(latent_shape, check_length)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; write the model folder again") from error
    return settings


def parse_settings(description: dict[str, Any], file: pathlib.Path) -> ModelSettings:
    """The settings in the description of a model, by themselves.

    Args:
      description: JSON values by name.
      file: that they are of, to be named.

    Raises:
      ValueError: one is missing, unknown, or makes no sense.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelSettings)}
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in description:
            raise ValueError(f"{file} lacks {name!r}; write the model folder again")
    unknown = sorted(set(description) - set(fields))
    if unknown:
        raise ValueError(
            f"{file}: {unknown[0]!r} is no setting of a model, which are {sorted(fields)}; remove "
            "it, or write the model folder again"
        )
    try:
        return ModelSettings(**description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}; write the model folder again") from error
