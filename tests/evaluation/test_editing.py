"""Scores of tasks: what a jump is, and what a model that knows the truth would get."""

import dataclasses
import json
import types

import numpy as np
import pytest

import sora_jax
from sora_jax.evaluation import editing
from sora_jax.evaluation.editing import score_edits
from sora_jax.evaluation.examples import Example, render_examples
from tests.tiny_model import write_model


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
    examples = render_examples(4, 33)
    monkeypatch.setattr(editing, "SECONDS", 1.0)
    monkeypatch.setattr(editing.prompting, "extend", Truth([e.frames for e in examples]).extend)
    for example in examples:
        middle = Example(example.frames[8:25], example.prompt, example.scene)
        for task in (editing.extend_forwards, editing.extend_backwards):
            scores, video = task(None, middle, 0)
            assert len(video) == 25
            assert scores["kept"] and scores["all"] == 1.0
            assert scores["jump"] == pytest.approx(1.0, abs=0.3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return sora_jax.load(write_model(folder, frames=17, text_length=64))


@pytest.mark.parametrize("known", [True, False], ids=["rendered", "unknown"])
def test_every_task_of_an_untrained_model_has_scores_and_pictures(
    model, tmp_path, monkeypatch, known
):
    monkeypatch.setattr(editing, "LONG_SECONDS", 7.0)
    # Two of a size and two colours, and one of another size, whose programs take the time.
    examples = [render_examples(4, 17)[i] for i in (0, 2, 3)]
    if not known:
        examples = [dataclasses.replace(example, scene=None) for example in examples]
    scores = score_edits(model, examples, folder=tmp_path)
    edits = {f"edit {strength}" for strength in editing.STRENGTHS}
    assert set(scores) == {*editing.EVERY, *edits} - {"edit"}
    assert scores["extend"]["kept"] == scores["extend_back"]["kept"] == 1.0
    assert all(np.isfinite(value) for row in scores.values() for value in row.values())
    assert all(("direction" in scores[task]) == known for task in ("animate", "extend", "loop"))
    assert ("all_end" in scores["long"]) == ("ends_as_second" in scores["connect"]) == known
    assert json.loads((tmp_path / "edits.json").read_text()) == scores
    assert {file.stem for file in tmp_path.glob("*.webp")} == set(editing.EVERY)


def test_a_long_video_that_loses_its_colour_and_edges_is_found_out(monkeypatch):
    (example,) = render_examples(1, 17)
    grey = np.full((400, *example.frames.shape[1:]), 120, np.uint8)
    pieces = [np.concatenate([example.frames] * 6), grey]
    monkeypatch.setattr(editing.endless, "long_video", lambda *_, **__: iter(pieces))
    model = types.SimpleNamespace(fps=8.0, settings=types.SimpleNamespace(frames=17))
    scores, _ = editing.long(model, example, 0)
    assert scores["colour_early"] == 1.0 and scores["colour_end"] == 0.0
    assert scores["sharpness_kept"] == 0.0 and scores["colour_change"] > 5


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"task 'dream' is unknown; use .*'connect'"):
        score_edits(None, [], tasks=["dream"])
