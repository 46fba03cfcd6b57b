"""Scores of the rendered world: a model that draws what it reads is right, noise is not."""

import json

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.worlds.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    Combination,
    is_held_out,
    place,
    render,
)
from sora_jax.evaluation.worlds import KINDS, Kind, score_shapes

FEW = (KINDS[0], Kind("image", Bucket(1, 64, 64)))


class Painter:
    """Renders the attributes that it finds in the prompt."""

    fps = 8.0

    def __init__(self):
        self.asked = []

    def sample(self, prompts, *, size, frames, seed, **sampling):
        rng = np.random.default_rng(seed)
        bucket = Bucket(frames, size[1], size[0])
        clips = []
        for prompt in prompts:
            words = prompt.lower().replace(".", "").replace(",", "").split()

            def find(names, words=words):
                return next((word for word in words if word in names), None)

            attributes = Combination(*map(find, (COLOURS, SHAPES, SIZES, DIRECTIONS, BACKGROUNDS)))
            self.asked.append(attributes)
            clips.append(render(place(rng, bucket, [attributes])))
        return np.stack(clips)


class Noise:
    fps = 8.0

    def sample(self, prompts, *, size, frames, seed, **sampling):
        shape = (len(prompts), frames, size[1], size[0], 3)
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_model_that_draws_its_prompt_is_right(tmp_path):
    painter = Painter()
    scores = score_shapes(painter, combinations=12, seeds=1, batch=6, kinds=FEW, folder=tmp_path)
    assert scores["square"]["all"] == 1.0 and scores["image"]["all"] == 1.0
    assert json.loads((tmp_path / "shapes.json").read_text()) == scores
    assert (tmp_path / "square.webp").is_file() and (tmp_path / "image.png").is_file()


def test_every_prompt_is_held_out_and_spread_over_the_attributes():
    painter = Painter()
    score_shapes(painter, combinations=36, seeds=1, batch=36, kinds=FEW)
    assert all(is_held_out(c.colour, c.shape, c.direction, c.background) for c in painter.asked)
    assert {c.colour for c in painter.asked} == set(COLOURS)
    assert {c.shape for c in painter.asked} == set(SHAPES)


def test_noise_is_wrong():
    scores = score_shapes(Noise(), combinations=6, seeds=1, batch=6, kinds=FEW)
    assert scores["square"]["all"] == 0.0 and scores["image"]["all"] == 0.0
