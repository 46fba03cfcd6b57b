"""Which transformer of a model a run trains, and what it leaves as it is."""

import dataclasses

from ml_collections import ConfigDict

from sora_jax.diffusion.experts import EXPERTS, HIGH
from sora_jax.models.dit_config import DiTConfig
from sora_jax.weights.model_folder import Part, find_model, load_description
from sora_jax.weights.parts import has_two


def trained_part(config: ConfigDict) -> str:
    """The part that a run of the transformer trains; `config.expert` says it where there are two.

    Raises:
      FileNotFoundError, ValueError: it says which of two where there is one, or not which where
        there are two, or asks two for what one network alone can learn.
    """
    two = False
    if config.init:
        folder = find_model(config.init)
        two = has_two(folder, load_description(folder))
    if not two:
        if config.expert:
            raise ValueError(
                f"config.expert={config.expert!r} is one of two transformers, and "
                f"config.init={config.init!r} has one only; leave config.expert empty"
            )
        return HIGH
    if config.expert not in EXPERTS:
        raise ValueError(
            f"config.init={config.init} has two transformers, for high and for low noise, and a "
            f"run trains one of them: config.expert={config.expert!r} must be one of "
            f"{sorted(EXPERTS)}"
        )
    for name, asked in (
        ("window", config.window),
        ("patterns.staircase", config.patterns.get("staircase")),
    ):
        if asked:
            raise ValueError(
                f"config.{name}={asked} shows frames at levels of their own, at which none of the "
                "two transformers is asked; make it 0"
            )
    return EXPERTS[config.expert]


def kept_parts(config: ConfigDict, part: str, dit: DiTConfig) -> dict[str, Part]:
    """The other transformer of the model that a run trains one of, to be copied; none if it is one.

    Args:
      config: of the run.
      part: of `trained_part`.
      dit: sizes of both.
    """
    if not config.expert:
        return {}
    other = next(name for name in EXPERTS.values() if name != part)
    file = find_model(config.init) / f"{other}.safetensors"
    return {other: Part(dataclasses.asdict(dit), file)}
