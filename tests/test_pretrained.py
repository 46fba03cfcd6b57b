"""The shipped model: small, complete, and it follows a prompt's colour."""

import numpy as np
import pytest

import sora_jax
from sora_jax.data.worlds import verify
from sora_jax.evaluation import editing
from sora_jax.evaluation.examples import render_examples
from sora_jax.loading import PRETRAINED


def test_shipped_files_are_small_and_complete():
    sizes = {file.name: file.stat().st_size for file in PRETRAINED.iterdir()}
    parts = {"model.json", "tokenizer.json", "vae.safetensors", "dit.safetensors"}
    assert parts | {"text.safetensors"} == set(sizes)
    assert sum(sizes.values()) < 30_000_000


def test_the_shipped_model_paints_the_colour_it_is_asked_for():
    model = sora_jax.load()
    colours = ("red", "green", "blue", "yellow", "purple", "cyan")
    prompts = [f"a {colour} circle on a black background" for colour in colours]
    clips = model.sample(prompts, size=(64, 64), frames=1, seed=0)
    found = [{sprite.colour for sprite in verify.read(clip).sprites} for clip in clips]
    right = [colour in seen for colour, seen in zip(colours, found)]
    assert np.sum(right) >= 5, found


@pytest.mark.parametrize("task", ["animate", "extend_forwards", "extend_backwards"])
def test_the_shipped_model_goes_on_from_what_it_is_given(task):
    """On clips of combinations that it never saw; the whole table is in docs/prompting.md."""
    model = sora_jax.load()
    examples = render_examples(5, model.settings.frames)
    scores = [getattr(editing, task)(model, e, i)[0] for i, e in enumerate(examples)]
    assert np.median([row["jump"] for row in scores]) < 1.5
    assert np.sum([row["colour"] for row in scores]) == 5
    assert np.sum([row["direction"] for row in scores]) >= 4
    assert np.sum([row["shape"] for row in scores]) >= 3
