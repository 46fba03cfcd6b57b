"""Does a model keep what it is given, and go on from it? Every task, on clips whose truth is known.

Scenes of the rendered world, in combinations that training never shows, with one sprite each. A
jump is the mean change of a pixel across a seam, over the median change between neighbouring frames
of the same video: 1 is a seam that nobody can find.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax import endless, prompting
from sora_jax.buckets import Bucket
from sora_jax.data.worlds import verify
from sora_jax.data.worlds.shapes import (
    COLOURS,
    Scene,
    captions,
    held_out_combinations,
    place,
    render,
)
from sora_jax.evaluation.reconstruction import psnr
from sora_jax.models.pixels import to_float
from sora_jax.pipeline import Model
from sora_jax.video_io import write

logger = logging.getLogger("sora_jax")

SHAPES = ((64, 64), (64, 96), (96, 64))  # (height, width), in turn
SECONDS = 1.5
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHOWN = 6  # clips of a task that go into its picture

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Example:
    """A rendered clip, what is in it, and the words for it."""

    scene: Scene
    frames: np.ndarray
    prompt: str


def make_examples(count: int, frames: int) -> list[Example]:
    """Scenes of one sprite in held-out combinations, spread evenly; always the same ones."""
    every = held_out_combinations()
    rng = np.random.default_rng(0)
    examples = []
    for i in range(count):
        bucket = Bucket(frames, *SHAPES[i % len(SHAPES)])
        scene = place(rng, bucket, [every[i * len(every) // count]])
        examples.append(Example(scene, render(scene), captions(scene, rng)["detailed"]))
    return examples


def changes(video: np.ndarray) -> np.ndarray:
    """Mean absolute change of a pixel from each frame to the next, [F - 1]."""
    return np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))


def jump(video: np.ndarray, seam: int) -> float:
    """The change into frame `seam`, over the median change between neighbouring frames."""
    every = changes(video)
    return float(every[seam - 1] / max(np.median(every), 1e-6))


def _right(frames: np.ndarray, scene: Scene) -> Scores:
    found = verify.check(frames, scene)
    return {name: float(found[name]) for name in ("colour", "shape", "direction", "all")}


def _extend(model: Model, example: Example, seconds: float, **sampling: Any) -> tuple:
    video = prompting.extend(model, example.frames, example.prompt, seconds, **sampling)
    count = len(example.frames)
    new = len(video) - count
    old, made, seam = (
        (video[:count], video[count:], count) if seconds > 0 else (video[new:], video[:new], new)
    )
    kept = bool((old == example.frames).all())
    return {"kept": kept, "jump": jump(video, seam), **_right(made, example.scene)}, video


def extend_forwards(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of what comes after a clip, and the video."""
    return _extend(model, example, SECONDS, seed=seed, **sampling)


def extend_backwards(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of what comes before a clip, and the video."""
    return _extend(model, example, -SECONDS, seed=seed, **sampling)


def loop(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of the way from a clip's end to its beginning, and two rounds of the video."""
    video = prompting.loop(model, example.frames, example.prompt, SECONDS, seed=seed, **sampling)
    count, twice = len(example.frames), np.concatenate([video, video])
    scores = {"jump_out": jump(twice, count), "jump_back": jump(twice, len(video))}
    return {**scores, **_right(video[count:], example.scene)}, twice


def loop_from_text(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """How a loop's seam compares with the changes inside it, and two rounds of the video."""
    height, width = example.frames.shape[1:3]
    video = endless.endless_loop(
        model, example.prompt, 2.5, size=(width, height), seed=seed, **sampling
    )
    twice = np.concatenate([video, video])
    inside = changes(video)
    seam = changes(twice)[len(video) - 1]
    scores = {
        "jump": jump(twice, len(video)),
        "seam_over_95th": float(seam / max(np.quantile(inside, 0.95), 1e-6)),
    }
    return {**scores, **_right(video, example.scene)}, twice


def animate(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of a clip from its first frame, and the video."""
    video = prompting.animate(model, example.frames[0], example.prompt, seed=seed, **sampling)
    return {"jump": jump(video, 1), **_right(video, example.scene)}, video


def keyframes(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """How well two frames of a clip are kept where they were given, and the video."""
    last = len(example.frames) - 5
    given = {i / model.fps: example.frames[i] for i in (0, last)}
    video = prompting.from_keyframes(model, given, example.prompt, seed=seed, **sampling)
    at = [0, last]
    pair = (to_float(frames[at]) for frames in (video, example.frames))
    return {"psnr": float(np.mean(psnr(*pair))), **_right(video, example.scene)}, video


TASKS: dict[str, Callable[..., tuple]] = {
    "animate": animate,
    "extend": extend_forwards,
    "extend_back": extend_backwards,
    "loop": loop,
    "text_loop": loop_from_text,
    "keyframes": keyframes,
}


def connect(
    model: Model, first: Example, second: Example, seed: int, **sampling: Any
) -> tuple[Scores, np.ndarray]:
    """Scores of the passage between two clips of different sprites, and the video."""
    video = prompting.connect(
        model, first.frames, second.frames, second.prompt, SECONDS, seed=seed, **sampling
    )
    start, end = len(first.frames), len(video) - len(second.frames)
    seen = [
        {sprite.colour for sprite in verify.read(frames).sprites}
        for frames in (video[start : start + 4], video[end - 4 : end])
    ]
    scores = {
        "jump_out": jump(video, start),
        "jump_in": jump(video, end),
        "starts_as_first": float(first.scene.sprites[0].colour in seen[0]),
        "ends_as_second": float(second.scene.sprites[0].colour in seen[1]),
    }
    return scores, video


def edit(
    model: Model, example: Example, seed: int, **sampling: Any
) -> tuple[dict[float, Scores], np.ndarray]:
    """For each strength how near an edit to another colour is to its input and to its prompt."""
    colours = list(COLOURS)
    old = example.scene.sprites[0]
    new = colours[(colours.index(old.colour) + 2) % len(colours)]
    wanted = [dataclasses.replace(old, colour=new)]
    prompt = example.prompt.replace(old.colour, new)
    truth = to_float(example.frames)
    rows, videos = {}, []
    for strength in STRENGTHS:
        video = prompting.edit(model, example.frames, prompt, strength, seed=seed, **sampling)
        videos.append(video)
        found = verify.check(video, wanted)
        rows[strength] = {
            "psnr": float(np.mean(psnr(to_float(video), truth))),
            "new_colour": float(found["colour"]),
            "shape": float(found["shape"]),
            "direction": float(found["direction"]),
        }
    return rows, np.concatenate(videos, axis=2)


def score_edits(
    model: Model,
    *,
    clips: int = 50,
    tasks: Sequence[str] = (*TASKS, "connect", "edit"),
    folder: pathlib.Path | None = None,
    **sampling: Any,
) -> dict[str, Scores]:
    """Scores of each task over the same clips: medians of jumps, means of the rest.

    Args:
      model: a model of the rendered world.
      clips: how many.
      tasks: names in TASKS, "connect" and "edit", whose rows are "edit STRENGTH".
      folder: gets a moving picture of each task and the scores as json.
      **sampling: steps, guidance, solver of `Model.sample`.

    Raises:
      ValueError: an unknown task.
    """
    unknown = sorted(set(tasks) - {*TASKS, "connect", "edit"})
    if unknown:
        raise ValueError(f"task {unknown[0]!r} is unknown; use {[*TASKS, 'connect', 'edit']}")
    examples = make_examples(clips, model.settings.frames)
    result: dict[str, Scores] = {}
    for task in tasks:
        rows: dict[str, list[Scores]] = {}
        videos = []
        for i, example in enumerate(examples):
            if task == "edit":
                some, video = edit(model, example, i, **sampling)
                for strength, row in some.items():
                    rows.setdefault(f"edit {strength}", []).append(row)
            elif task == "connect":
                other = _another(examples, i)
                if other is None:
                    continue
                row, video = connect(model, example, other, i, **sampling)
                rows.setdefault(task, []).append(row)
            else:
                row, video = TASKS[task](model, example, i, **sampling)
                rows.setdefault(task, []).append(row)
            videos.append(video)
        if not videos:
            raise ValueError(f"{clips} clips hold no two of one size and two colours; use more")
        for name, every in rows.items():
            result[name] = {
                key: float(
                    (np.median if "jump" in key or "seam" in key else np.mean)(
                        [row[key] for row in every]
                    )
                )
                for key in every[0]
            }
            logger.info("%s: %s", name, result[name])
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{task}.webp", _sheet(videos), fps=model.fps)
    if folder is not None:
        (folder / "edits.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _another(examples: Sequence[Example], i: int) -> Example | None:
    """A clip of the same size and another colour, from half-way round the list on."""
    count = len(examples)
    for step in range(count):
        other = examples[(i + count // 2 + step) % count]
        same_size = other.frames.shape == examples[i].frames.shape
        if same_size and other.scene.sprites[0].colour != examples[i].scene.sprites[0].colour:
            return other
    return None


def _sheet(videos: Sequence[np.ndarray]) -> np.ndarray:
    """The first videos of the first one's height side by side; shorter ones stand still."""
    chosen = [video for video in videos if video.shape[1] == videos[0].shape[1]][:_SHOWN]
    length = max(len(video) for video in chosen)
    index = np.arange(length)
    return np.concatenate([video[np.minimum(index, len(video) - 1)] for video in chosen], axis=2)
