"""Clips of the world of shapes that pass into others, as films do: what connecting two videos is.

Where nothing in the physics of a world leads from one scene to another, a film dissolves. Some of
the long clips do: into a scene of another caption, or into one of the same that begins elsewhere,
which is how the end of a clip can lead back to its beginning.
"""

from typing import Any

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.worlds.scenes import Combination, Scene, draw_scene, place, render
from sora_jax.data.worlds.shapes import Shapes, captions
from sora_jax.seams import dissolve

LENGTHS = (4, 12)  # of a dissolve, frames
_SHORTEST = 24  # clips of fewer frames are left as they are
_EDGE = 6  # frames before and after a dissolve, at least
_SAME = 0.5  # share of dissolves into a scene of the same caption


class Dissolves:
    """A source like the shapes it is made of, in which some long clips dissolve into another scene.

    Attributes:
      fps, shapes: of `Shapes`.

    Args:
      world: where the first scenes come from.
      share: of the clips that are long enough.

    Raises:
      ValueError: a share outside [0, 1].
    """

    def __init__(self, world: Shapes, share: float):
        if not 0 <= share <= 1:
            raise ValueError(f"a share of {share} dissolves must lie in 0 to 1")
        self._world = world
        self._share = share
        self.fps = world.fps
        self.shapes = world.shapes

    def __repr__(self) -> str:
        return f"Dissolves({self._world!r}, share={self._share})"

    def __len__(self) -> int:
        return len(self._world)

    def scenes(self, index: int, bucket: Bucket | None = None) -> tuple[Scene, ...]:
        """The one or two scenes of clip `index`, the latter of one sprite each."""
        return self._draw(index, bucket)[0]

    def captions(self, index: int) -> dict[str, str]:
        """See `Shapes.captions`; two scenes are told one after the other."""
        return _tell(self.scenes(index), self._world.rng(index))

    def read(self, index: int, bucket: Bucket, rng: np.random.Generator) -> dict[str, Any]:
        """See `Shapes.read`."""
        scenes, start, length = self._draw(index, bucket)
        frames = render(scenes[0])
        if len(scenes) == 2:
            share = np.clip((np.arange(len(frames)) - start + 1) / (length + 1), 0, 1)
            frames = dissolve(frames, render(scenes[1]), share)
        return {"frames": frames, "captions": _tell(scenes, rng)}

    def _draw(self, index: int, bucket: Bucket | None) -> tuple[tuple[Scene, ...], int, int]:
        """Scenes, first mixed frame and number of mixed frames of a clip."""
        first = self._world.scene(index, bucket)
        rng = self._world.rng(index, 1)
        if first.frames < _SHORTEST or rng.random() >= self._share or len(first.sprites) > 1:
            return (first,), 0, 0
        length = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
        start = int(rng.integers(_EDGE, first.frames - _EDGE - length + 1))
        bucket = Bucket(first.frames, first.height, first.width)
        if rng.random() < _SAME:
            sprite = first.sprites[0]
            same = Combination(
                sprite.colour, sprite.shape, sprite.size, sprite.direction, first.background
            )
            return (first, place(rng, bucket, [same])), start, length
        second = draw_scene(rng, bucket, self._world.split, two_sprites=0.0)
        return (first, second), start, length


def _tell(scenes: tuple[Scene, ...], rng: np.random.Generator) -> dict[str, str]:
    told = [captions(scene, rng) for scene in scenes]
    if len(told) == 1 or told[0]["short"] == told[1]["short"]:
        return told[0]
    then = told[1]["detailed"]
    return {
        "short": f"{told[0]['short']}, then {told[1]['short']}",
        "detailed": f"{told[0]['detailed']} Then {then[0].lower()}{then[1:]}",
    }
