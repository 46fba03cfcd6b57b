"""Does a model make what it is told? Prompts of the rendered world, read back from the pixels."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.worlds import verify
from sora_jax.data.worlds.scenes import held_out_combinations, place
from sora_jax.data.worlds.shapes import captions
from sora_jax.pipeline import Model
from sora_jax.video_io import write

logger = logging.getLogger("sora_jax")

ATTRIBUTES = ("colour", "shape", "direction", "all")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of sample: its name in the report and its shape."""

    name: str
    bucket: Bucket


KINDS = (
    Kind("square", Bucket(17, 64, 64)),
    Kind("wide", Bucket(17, 64, 96)),
    Kind("tall", Bucket(17, 96, 64)),
    Kind("image", Bucket(1, 64, 64)),
)


def score_shapes(
    model: Model,
    *,
    combinations: int = 100,
    seeds: int = 2,
    batch: int = 20,
    kinds: Sequence[Kind] = KINDS,
    folder: pathlib.Path | None = None,
    **sampling: float,
) -> dict[str, dict[str, float]]:
    """How often colour, shape and direction are right, for combinations never trained together.

    Args:
      model: a model of the rendered world.
      combinations: how many of the held-out combinations, spread evenly.
      seeds: samples of each.
      batch: prompts sampled together.
      kinds: shapes of the samples.
      folder: gets a moving picture of eight samples of each kind, spread evenly, and the scores as
        json.
      **sampling: goes to `Model.sample`.

    Returns:
      For each kind the share of samples that are right in each of ATTRIBUTES.
    """
    scores = {}
    for kind in kinds:
        bucket = kind.bucket
        image = bucket.frames == 1
        every = held_out_combinations(images=image)
        chosen = [every[i * len(every) // combinations] for i in range(combinations)]
        rng = np.random.default_rng(0)
        scenes = [place(rng, bucket, [c]) for c in chosen for _ in range(seeds)]
        prompts = [captions(scene, rng)["detailed"] for scene in scenes]
        right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
        pictured = sorted({i * len(prompts) // 8 for i in range(8)})
        shown = []
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            padded = some + [some[-1]] * (batch - len(some))
            clips = model.sample(
                padded,
                size=(bucket.width, bucket.height),
                frames=bucket.frames,
                seed=start,
                **sampling,
            )
            for clip, scene in zip(clips, scenes[start : start + batch]):
                found = verify.check(clip, scene)
                for name in ATTRIBUTES:
                    right[name].append(bool(found[name]))
            shown += [clips[i - start] for i in pictured if start <= i < start + len(some)]
            logger.info(
                "%s: %d of %d, %.0f %% right",
                kind.name,
                len(right["all"]),
                len(prompts),
                100 * np.mean(right["all"]),
            )
        scores[kind.name] = {name: float(np.mean(values)) for name, values in right.items()}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            columns = min(4, len(shown))
            starts = range(0, len(shown) // columns * columns, columns)
            rows = [np.concatenate(list(shown[i : i + columns]), axis=2) for i in starts]
            sheet = np.concatenate(rows, axis=1)
            write(folder / f"{kind.name}.{'png' if image else 'webp'}", sheet, fps=model.fps)
    if folder is not None:
        (folder / "shapes.json").write_text(json.dumps(scores, indent=2) + "\n")
    return scores
