"""Scores of tasks: what a jump is, and what a model that knows the truth would get."""

import json

import numpy as np
import pytest

import sora_jax
from sora_jax.data.worlds.shapes import is_held_out
from sora_jax.evaluation import editing
from sora_jax.evaluation.editing import jump, make_examples, score_edits
from tests.tiny_model import write_model


def test_a_seam_is_measured_against_the_other_changes():
    video = np.zeros((9, 4, 4, 3), np.uint8)
    video += (np.arange(9) * 10)[:, None, None, None].astype(np.uint8)
    assert jump(video, 4) == pytest.approx(1.0)
    video[4:] += 20
    assert jump(video, 4) == pytest.approx(3.0)
    assert jump(video, 5) == pytest.approx(1.0)


def test_examples_are_of_combinations_that_training_never_shows():
    examples = make_examples(9, 5)
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
    assert [e.prompt for e in examples] == [e.prompt for e in make_examples(9, 5)]


class Truth:
    """Goes on as the rendered world does: the scores of a perfect model."""

    def __init__(self, frames):
        self.frames = frames

    def extend(self, model, video, prompt, seconds, **_):
        whole = next(f for f in self.frames if np.array_equal(f[8 : 8 + len(video)], video))
        count = round(abs(seconds) * 8)
        return (
            whole[8 : 8 + len(video) + count]
            if seconds > 0
            else whole[8 - count or None :][: len(video) + count]
        )


def test_a_model_that_knows_the_truth_is_right(monkeypatch):
    """What comes before and after a clip is itself rendered: no jump, every attribute right."""
    examples = make_examples(4, 33)
    monkeypatch.setattr(editing, "SECONDS", 1.0)
    monkeypatch.setattr(editing.prompting, "extend", Truth([e.frames for e in examples]).extend)
    for example in examples:
        middle = editing.Example(example.scene, example.frames[8:25], example.prompt)
        for task in (editing.extend_forwards, editing.extend_backwards):
            scores, video = task(None, middle, 0)
            assert len(video) == 25
            assert scores["kept"] and scores["all"] == 1.0
            assert scores["jump"] == pytest.approx(1.0, abs=0.3)


def test_every_task_of_an_untrained_model_has_scores_and_pictures(tmp_path):
    model = sora_jax.load(write_model(tmp_path / "model", frames=17, text_length=64))
    scores = score_edits(model, clips=6, folder=tmp_path / "out")
    assert set(scores) == {
        *(*editing.TASKS, "connect"),
        *(f"edit {strength}" for strength in editing.STRENGTHS),
    }
    assert scores["extend"]["kept"] == scores["extend_back"]["kept"] == 1.0
    assert all(np.isfinite(value) for row in scores.values() for value in row.values())
    assert json.loads((tmp_path / "out" / "edits.json").read_text()) == scores
    assert {file.stem for file in (tmp_path / "out").glob("*.webp")} == {
        *(*editing.TASKS, "connect", "edit")
    }


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"task 'dream' is unknown; use .*'connect'"):
        score_edits(None, tasks=["dream"])
