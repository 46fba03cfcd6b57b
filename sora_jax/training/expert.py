"""Which transformer of a model a run trains, and what it leaves as it is."""

import dataclasses

from ml_collections import ConfigDict

from sora_jax.diffusion.experts import EXPERTS, HIGH
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
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


def kept_parts(
    config: ConfigDict, part: str, dit: DiTConfig, image: ImageConfig | None
) -> dict[str, Part]:
    """What a run's model has of that of `config.init` and the run leaves as it is, to be copied.

    That is the other transformer where there are two, and the image encoder where there is one.

    Args:
      config: of the run.
      part: of `trained_part`.
      dit: sizes of the transformers.
      image: of the image encoder.
    """
    sizes = {} if image is None else {"image": image}
    if config.expert:
        sizes[next(name for name in EXPERTS.values() if name != part)] = dit
    return {
        name: Part(dataclasses.asdict(one), find_model(config.init) / f"{name}.safetensors")
        for name, one in sizes.items()
    }
