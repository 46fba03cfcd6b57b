"""Clips to prompt a model with: rendered ones, whose truth is known, or those of a dataset."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.captions import KINDS
from sora_jax.data.source import ClipSource
from sora_jax.data.worlds.scenes import Scene, held_out_combinations, place, render
from sora_jax.data.worlds.shapes import captions
from sora_jax.pipeline import Model

SHAPES = ((64, 64), (64, 96), (96, 64))  # (height, width), in turn


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip, the words for it, and what is in it if that is known."""

    frames: np.ndarray
    prompt: str
    scene: Scene | None = None


def render_examples(count: int, frames: int) -> list[Example]:
    """Scenes of one sprite in held-out combinations, spread evenly; always the same ones."""
    every = held_out_combinations()
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        bucket = Bucket(frames, *SHAPES[i % len(SHAPES)])
        scene = place(rng, bucket, [every[i * len(every) // count]])
        examples.append(Example(render(scene), captions(scene, rng)["detailed"], scene))
    return examples


def read_examples(source: ClipSource, model: Model, count: int) -> list[Example]:
    """The first clips of a dataset that are as long as the model's own, at sizes like its own.

    Raises:
      ValueError: there is none.
    """
    examples = []
    for i, (frames, clip_height, clip_width) in enumerate(source.shapes):
        if frames < model.settings.frames or len(examples) == count:
            continue
        width, height = model.fit_size(clip_width, clip_height)
        bucket = Bucket(model.settings.frames, height, width)
        clip = source.read(i, bucket, np.random.default_rng(i))
        examples.append(Example(clip["frames"], _readable(model, clip["captions"])))
    if not examples:
        raise ValueError(
            f"no clip of {source!r} has the {model.settings.frames} frames of the model's own"
        )
    return examples


def another(examples: Sequence[Example], i: int) -> Example | None:
    """A clip of the same size and, where it is known, another colour, from half-way on."""
    count = len(examples)
    for step in range(count):
        at = (i + count // 2 + step) % count
        other, this = examples[at], examples[i]
        if at == i or other.frames.shape != this.frames.shape:
            continue
        if this.scene is None or other.scene.sprites[0].colour != this.scene.sprites[0].colour:
            return other
    return None


def _readable(model: Model, texts: dict[str, str]) -> str:
    """The first caption, short ones first, that the model has the room to read; or none."""
    for kind in KINDS:
        try:
            model.tokenizer.check_length(texts.get(kind, ""), model.settings.text_length)
        except ValueError:
            continue
        if texts.get(kind):
            return texts[kind]
    return ""
