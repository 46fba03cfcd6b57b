"""Does a model keep what it is given, and go on from it? Every task, clip by clip.

Jumps at seams are those of `sora_jax.seams`. Of clips whose truth is known, what is
made is read back and compared with it.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sora_jax import endless, passages, prompting
from sora_jax.data.worlds import verify
from sora_jax.data.worlds.scenes import COLOURS
from sora_jax.evaluation.examples import Example, another
from sora_jax.evaluation.reconstruction import psnr
from sora_jax.models.pixels import to_float
from sora_jax.pipeline import Model
from sora_jax.seams import changes, jump
from sora_jax.video_io import write

logger = logging.getLogger("sora_jax")

SECONDS = 1.5  # of what is made, but
ROUND_SECONDS = 3.0  # of a video's way back where a shape has the time to come round,
LOOP_SECONDS = 8.0  # of a loop from text: long enough for a shape to come round
LONG_SECONDS = 60.0
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHOWN = 6  # clips of a task that go into its picture

Scores = dict[str, float]


def _right(frames: np.ndarray, example: Example) -> Scores:
    """What the frames show as it should be, where that is known."""
    if example.scene is None:
        return {}
    found = verify.check(frames, example.scene)
    return {name: float(found[name]) for name in ("colour", "shape", "direction", "all")}


def _extend(model: Model, example: Example, seconds: float, **sampling: Any) -> tuple:
    video = prompting.extend(model, example.frames, example.prompt, seconds, **sampling)
    count = len(example.frames)
    new = len(video) - count
    old, made, seam = (
        (video[:count], video[count:], count) if seconds > 0 else (video[new:], video[:new], new)
    )
    kept = bool((old == example.frames).all())
    return {"kept": kept, "jump": jump(video, seam), **_right(made, example)}, video


def extend_forwards(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of what comes after a clip, and the video."""
    return _extend(model, example, SECONDS, seed=seed, **sampling)


def extend_backwards(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of what comes before a clip, and the video."""
    return _extend(model, example, -SECONDS, seed=seed, **sampling)


def loop(
    model: Model, example: Example, seed: int, *, seconds: float = SECONDS, **sampling: Any
) -> tuple:
    """Scores of the way from a clip's end to its beginning, and two rounds of the video."""
    video = passages.loop(model, example.frames, example.prompt, seconds, seed=seed, **sampling)
    count, twice = len(example.frames), np.concatenate([video, video])
    scores = {"jump_out": jump(twice, count), "jump_back": jump(twice, len(video))}
    return {**scores, **_right(video[count:], example)}, twice


def loop_from_text(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """How a loop's seam compares with the changes inside it, and two rounds of the video."""
    height, width = example.frames.shape[1:3]
    video = endless.endless_loop(
        model, example.prompt, LOOP_SECONDS, size=(width, height), seed=seed, **sampling
    )
    twice = np.concatenate([video, video])
    inside = changes(video)
    seam = changes(twice)[len(video) - 1]
    scores = {
        "jump": jump(twice, len(video)),
        "seam_over_95th": float(seam / max(np.quantile(inside, 0.95), 1e-6)),
    }
    return {**scores, **_right(video, example)}, twice


def animate(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """Scores of a clip from its first frame, and the video."""
    video = prompting.animate(model, example.frames[0], example.prompt, seed=seed, **sampling)
    return {"jump": jump(video, 1), **_right(video, example)}, video


def long(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """How a long video is at its end, compared with its sixth second, and a part of it."""
    height, width = example.frames.shape[1:3]
    pieces = endless.long_video(
        model, example.prompt, LONG_SECONDS, size=(width, height), seed=seed, **sampling
    )
    video = np.concatenate(list(pieces))
    count = min(model.settings.frames, len(video) // 3)
    start = min(round(5 * model.fps), len(video) - 2 * count)
    parts = {"early": video[start : start + count], "end": video[-count:]}
    scores = {
        f"{name}_{when}": value
        for when, frames in parts.items()
        for name, value in _right(frames, example).items()
    }
    early, end = parts.values()
    return {
        **scores,
        "colour_change": float(np.abs(early.mean((0, 1, 2)) - end.mean((0, 1, 2))).mean()),
        "sharpness_kept": _sharpness(end) / max(_sharpness(early), 1e-6),
    }, video[:: max(1, len(video) // 48)]


def _sharpness(frames: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels."""
    frames = frames.astype(np.float32)
    return float(sum(np.abs(np.diff(frames, axis=axis)).mean() for axis in (1, 2)))


def keyframes(model: Model, example: Example, seed: int, **sampling: Any) -> tuple:
    """How well two frames of a clip are kept where they were given, and the video."""
    last = len(example.frames) - 5
    given = {i / model.fps: example.frames[i] for i in (0, last)}
    video = prompting.from_keyframes(model, given, example.prompt, seed=seed, **sampling)
    at = [0, last]
    pair = (to_float(frames[at]) for frames in (video, example.frames))
    return {"psnr": float(np.mean(psnr(*pair))), **_right(video, example)}, video


TASKS: dict[str, Callable[..., tuple]] = {
    "animate": animate,
    "extend": extend_forwards,
    "extend_back": extend_backwards,
    "loop": loop,
    "loop_round": functools.partial(loop, seconds=ROUND_SECONDS),
    "text_loop": loop_from_text,
    "keyframes": keyframes,
    "long": long,
}
EVERY = (*TASKS, "connect", "edit")


def connect(
    model: Model, first: Example, second: Example, seed: int, **sampling: Any
) -> tuple[Scores, np.ndarray]:
    """Scores of the passage between two clips, and the video."""
    video = passages.connect(
        model,
        first.frames,
        second.frames,
        (first.prompt, second.prompt),
        SECONDS,
        seed=seed,
        **sampling,
    )
    start, end = len(first.frames), len(video) - len(second.frames)
    scores = {"jump_out": jump(video, start), "jump_in": jump(video, end)}
    if first.scene is not None:
        seen = [
            {sprite.colour for sprite in verify.read(frames).sprites}
            for frames in (video[start : start + 4], video[end - 4 : end])
        ]
        scores["starts_as_first"] = float(first.scene.sprites[0].colour in seen[0])
        scores["ends_as_second"] = float(second.scene.sprites[0].colour in seen[1])
    return scores, video


def edit(
    model: Model, example: Example, seed: int, **sampling: Any
) -> tuple[dict[float, Scores], np.ndarray]:
    """For each strength how near an edit is to its input and to its prompt: another colour, or the
    clip's own caption where it is not known what there is to recolour."""
    prompt, wanted = example.prompt, []
    if example.scene is not None:
        colours = list(COLOURS)
        old = example.scene.sprites[0]
        new = colours[(colours.index(old.colour) + 2) % len(colours)]
        wanted = [dataclasses.replace(old, colour=new)]
        prompt = prompt.replace(old.colour, new)
    truth = to_float(example.frames)
    rows, videos = {}, []
    for strength in STRENGTHS:
        video = prompting.edit(model, example.frames, prompt, strength, seed=seed, **sampling)
        videos.append(video)
        rows[strength] = {"psnr": float(np.mean(psnr(to_float(video), truth)))}
        if wanted:
            found = verify.check(video, wanted)
            rows[strength]["new_colour"] = float(found["colour"])
            rows[strength]["shape"] = float(found["shape"])
            rows[strength]["direction"] = float(found["direction"])
    return rows, np.concatenate(videos, axis=2)


def score_edits(
    model: Model,
    examples: Sequence[Example],
    *,
    tasks: Sequence[str] = EVERY,
    folder: pathlib.Path | None = None,
    **sampling: Any,
) -> dict[str, Scores]:
    """Scores of each task over the same clips: medians of jumps, means of the rest.

    Args:
      model: the model.
      examples: the clips, of the model's own length.
      tasks: names in EVERY; the rows of "edit" are "edit STRENGTH".
      folder: gets a moving picture of each task and the scores as json.
      **sampling: steps, guidance, solver of `Model.sample`.

    Raises:
      ValueError: an unknown task.
    """
    unknown = sorted(set(tasks) - set(EVERY))
    if unknown:
        raise ValueError(f"task {unknown[0]!r} is unknown; use {list(EVERY)}")
    if "connect" in tasks and not any(another(examples, i) for i in range(len(examples))):
        raise ValueError(
            f"{len(examples)} clips hold no two of one size and two colours: use more, or other "
            "tasks than connect"
        )
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
                other = another(examples, i)
                if other is None:
                    continue
                row, video = connect(model, example, other, i, **sampling)
                rows.setdefault(task, []).append(row)
            else:
                row, video = TASKS[task](model, example, i, **sampling)
                rows.setdefault(task, []).append(row)
            videos.append(video)
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
            (folder / "edits.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _sheet(videos: Sequence[np.ndarray]) -> np.ndarray:
    """The first videos of the first one's height side by side; shorter ones stand still."""
    chosen = [video for video in videos if video.shape[1] == videos[0].shape[1]][:_SHOWN]
    length = max(len(video) for video in chosen)
    index = np.arange(length)
    return np.concatenate([video[np.minimum(index, len(video) - 1)] for video in chosen], axis=2)
