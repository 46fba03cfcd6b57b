"""Clips to prompt with: rendered in held-out combinations, or read from a dataset."""

import numpy as np
import pytest

import sora_jax
from sora_jax.data.worlds.scenes import is_held_out
from sora_jax.evaluation.examples import another, read_examples, render_examples
from tests.tiny_model import FRAMES, PROMPT, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sora_jax.load(write_model(tmp_path_factory.mktemp("model")))


def test_examples_are_of_combinations_that_training_never_shows():
    examples = render_examples(9, 5)
    assert {example.frames.shape for example in examples} == {
        (5, 64, 64, 3),
        (5, 64, 96, 3),
        (5, 96, 64, 3),
    }
    for example in examples:
        (sprite,) = example.scene.sprites
        shown = (sprite.colour, sprite.shape, sprite.direction)
        assert is_held_out(*shown, example.scene.background)
        assert all(word in example.prompt.lower() for word in shown)
    assert [e.prompt for e in examples] == [e.prompt for e in render_examples(9, 5)]


class Clips:
    """Three clips: too short, wide, tall; the captions of the wide one are too long to be read."""

    fps = 8.0
    shapes = np.array([[1, 64, 64], [FRAMES, 100, 200], [2 * FRAMES, 90, 45]])

    def read(self, index, bucket, rng):
        frames = np.full((bucket.frames, bucket.height, bucket.width, 3), index, np.uint8)
        long = "circle " * 20
        captions = {1: {"short": long}, 2: {"short": long, "detailed": PROMPT}}
        return {"frames": frames, "captions": captions[index]}


def test_clips_of_a_dataset_are_taken_at_the_models_length_and_area(model):
    examples = read_examples(Clips(), model, 5)
    assert [e.frames.shape for e in examples] == [(FRAMES, 16, 32, 3), (FRAMES, 32, 16, 3)]
    assert [e.prompt for e in examples] == ["", PROMPT]
    assert all(e.scene is None for e in examples)
    assert len(read_examples(Clips(), model, 1)) == 1


def test_a_dataset_of_short_clips_is_refused(model):
    short = Clips()
    short.shapes = short.shapes[:1]
    with pytest.raises(ValueError, match=f"no clip of .* has the {FRAMES} frames"):
        read_examples(short, model, 5)


def test_another_clip_has_the_same_size_and_another_colour():
    examples = render_examples(30, 5)
    for i, example in enumerate(examples):
        other = another(examples, i)
        assert other.frames.shape == example.frames.shape
        assert other.scene.sprites[0].colour != example.scene.sprites[0].colour
    assert another(examples[:1], 0) is None and another(examples[:3], 0) is None
