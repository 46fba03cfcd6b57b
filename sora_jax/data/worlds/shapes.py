"""Captioned clips of the world of moving shapes: endless, exact, and their truth is known."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.worlds.scenes import SPLITS, Scene, draw_scene, render

FPS = 8.0

_ONE = (
    "{0} moves {d0} across a {b} background.",
    "{0} is moving {d0} on a {b} background.",
    "On a {b} background, {0} moves {d0}.",
    "The background is {b}. {0} moves {d0}.",
)
_TWO = (
    "{0} moves {d0} and {1} moves {d1} across a {b} background.",
    "{0} moves {d0} in front of {1} that moves {d1}. The background is {b}.",
    "On a {b} background, {0} moves {d0} and {1} moves {d1}.",
    "The background is {b}. {0} moves {d0} and {1} moves {d1}.",
)
_ONE_IMAGE = (
    "{0} on a {b} background.",
    "A picture of {0} on a {b} background.",
    "On a {b} background there is {0}.",
    "The background is {b}. There is {0}.",
)
_TWO_IMAGE = (
    "{0} and {1} on a {b} background.",
    "A picture of {0} and {1} on a {b} background.",
    "On a {b} background there are {0} and {1}.",
    "The background is {b}. There are {0} and {1}.",
)


def captions(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    """What a scene shows, in words: `short` (colour, shape, direction) and `detailed` (also size
    and background, in one of several wordings that `rng` draws). Images name no direction."""
    still = scene.frames == 1 or any(s.direction is None for s in scene.sprites)
    one, two = (_ONE_IMAGE, _TWO_IMAGE) if still else (_ONE, _TWO)
    templates = one if len(scene.sprites) == 1 else two
    detailed = templates[rng.integers(len(templates))].format(
        *(f"a {s.size} {s.colour} {s.shape}" for s in scene.sprites),
        b=scene.background,
        **{f"d{i}": s.direction for i, s in enumerate(scene.sprites)},
    )
    short = " and ".join(
        f"a {s.colour} {s.shape}" + ("" if still else f" moves {s.direction}")
        for s in scene.sprites
    )
    sentences = (s[0].upper() + s[1:] for s in detailed.split(". "))
    return {"short": short, "detailed": ". ".join(sentences)}


class Shapes:
    """Clips of the world by index, as a `ClipSource`: nothing is stored, each is drawn anew.

    Clip i is a pure function of (seed, split, i) and the bucket it is read at. Indices of another
    seed or split are other clips.

    Attributes:
      fps: 8.
      shapes: int32 [length, 3], each clip's frames, height and width.
      split: which combinations are drawn.

    Args:
      length: number of clips.
      buckets: the shapes that clips have.
      weights: relative number of clips of each bucket; None for equally many.
      seed: of everything.
      split: "train" or "held_out".
      two_sprites: probability of a second sprite.

    Raises:
      ValueError: an unknown split, no bucket, or weights that do not fit the buckets.
    """

    fps = FPS

    def __init__(
        self,
        length: int,
        buckets: Sequence[Bucket],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        split: str = "train",
        two_sprites: float = 0.25,
    ):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose from {list(SPLITS)}")
        if not buckets:
            raise ValueError("buckets is empty; pass at least one Bucket")
        share = np.ones(len(buckets)) if weights is None else np.asarray(weights, float)
        if share.shape != (len(buckets),) or (share < 0).any() or not share.sum() > 0:
            raise ValueError(
                f"weights {weights} do not fit {len(buckets)} buckets; "
                "give one number >= 0 for each, not all of them 0"
            )
        self._key = (seed, SPLITS.index(split))
        self.split = split
        self._two_sprites = two_sprites
        table = np.array([(b.frames, b.height, b.width) for b in buckets], np.int32)
        rng = np.random.default_rng(self._key)
        self.shapes = table[rng.choice(len(buckets), size=length, p=share / share.sum())]

    def __repr__(self) -> str:
        return f"Shapes({len(self)} clips, seed={self._key[0]}, {self.split!r})"

    def __len__(self) -> int:
        return len(self.shapes)

    def scene(self, index: int, bucket: Bucket | None = None) -> Scene:
        """The ground truth of clip `index`, at its own shape or at the one it is read at.

        Raises:
          IndexError: `index` outside the source.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}; use 0 to {len(self) - 1}")
        if bucket is None:
            bucket = Bucket(*(int(v) for v in self.shapes[index]))
        return draw_scene(self.rng(index), bucket, self.split, self._two_sprites)

    def captions(self, index: int) -> dict[str, str]:
        """Captions of clip `index`, always in the same one of the wordings that `read` draws."""
        return captions(self.scene(index), self.rng(index))

    def rng(self, *numbers: int) -> np.random.Generator:
        """A source of chance for clip `numbers[0]`, another one for each tuple of numbers."""
        return np.random.default_rng((*self._key, *numbers))

    def read(self, index: int, bucket: Bucket, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index` at the bucket's shape: `frames` uint8 [F, H, W, 3] and `captions`.

        `rng` draws only the wording of the detailed caption.
        """
        scene = self.scene(index, bucket)
        return {"frames": render(scene), "captions": captions(scene, rng)}
