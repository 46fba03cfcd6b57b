"""Does fine-tuning teach the shipped model a word? Clips of purple shapes, which are called violet.

python -m benchmarks.new_word render FOLDER [clips]       # to learn from: videos and captions
python -m benchmarks.new_word score CHECKPOINT [samples]  # read back from the pixels

Scored are samples of combinations of shape and direction that were in no clip, of violet, and as
many of the colours that the model knew before, which it could have lost. A colour that it has not
seen would not do: its VAE, which stays as it is, cannot show one.
"""

import json
import pathlib
import sys

import numpy as np

import sora_jax
from sora_jax.buckets import Bucket
from sora_jax.data.worlds import scenes, shapes, verify

WORD, COLOUR = "violet", "purple"
BUCKET = Bucket(17, 64, 64)
ATTRIBUTES = ("colour", "shape", "direction", "all")


def combinations(*, held_out: bool, known: bool) -> list[scenes.Combination]:
    """Those of purple or of the other colours, in an order without an order."""
    every = [
        scenes.Combination(colour, shape, size, direction, background)
        for colour in scenes.COLOURS
        for shape in scenes.SHAPES
        for size in scenes.SIZES
        for direction in scenes.DIRECTIONS
        for background in scenes.BACKGROUNDS
        if (colour != COLOUR) == known
        and scenes.is_held_out(colour, shape, direction, background) == held_out
    ]
    order = np.random.default_rng(0).permutation(len(every))
    return [every[i] for i in order]


def captions(scene: scenes.Scene, rng: np.random.Generator) -> dict[str, str]:
    said = shapes.captions(scene, rng)
    return {kind: text.replace(COLOUR, WORD) for kind, text in said.items()}


def render(folder: pathlib.Path, clips: int) -> None:
    folder.mkdir(parents=True)
    chosen, rng = combinations(held_out=False, known=False), np.random.default_rng(1)
    rows = []
    for i in range(clips):
        scene = scenes.place(rng, BUCKET, [chosen[i % len(chosen)]])
        name = f"{i:04}.mp4"
        sora_jax.save(scenes.render(scene), folder / name, fps=shapes.FPS)
        rows.append(json.dumps({"file_name": name, **captions(scene, rng)}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def score(checkpoint: str, samples: int) -> None:
    model = sora_jax.load(checkpoint)
    print(f"{'':>8}" + "".join(f"{name:>11}" for name in ATTRIBUTES))
    for name, known in ((WORD, False), ("known", True)):
        rng = np.random.default_rng(2)
        chosen = combinations(held_out=True, known=known)
        asked = [scenes.place(rng, BUCKET, [chosen[i % len(chosen)]]) for i in range(samples)]
        prompts = [captions(scene, rng)["detailed"] for scene in asked]
        size = BUCKET.width, BUCKET.height
        clips = model.sample(prompts, size=size, frames=BUCKET.frames, seed=0)
        found = [verify.check(clip, scene) for clip, scene in zip(clips, asked)]
        shares = [np.mean([one[attribute] for one in found]) for attribute in ATTRIBUTES]
        print(f"{name:>8}" + "".join(f"{100 * share:>10.1f}%" for share in shares))


def main(argv: list[str]) -> None:
    if len(argv) not in (3, 4) or argv[1] not in ("render", "score"):
        sys.exit(__doc__)
    count = [int(number) for number in argv[3:]]
    if argv[1] == "render":
        render(pathlib.Path(argv[2]), *(count or [192]))
    else:
        score(argv[2], *(count or [24]))


if __name__ == "__main__":
    main(sys.argv)
