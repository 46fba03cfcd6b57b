"""The world of moving shapes: what a scene can be, which ones are held out, and its pixels.

One or two flat sprites move at constant speed over a flat background. The canvas is a torus, so
motion in a direction never ends and long videos stay meaningful. A fixed quarter of the
attribute combinations is kept out of training, to tell composition from memory.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sora_jax.buckets import Bucket

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 50),
    "purple": (160, 50, 190),
    "cyan": (50, 205, 215),
}
BACKGROUNDS = {
    "black": (16, 16, 16),
    "grey": (128, 128, 128),
    "white": (240, 240, 240),
    "brown": (115, 75, 45),
}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 8.0, "large": 13.0}  # radius of the circle of the same area, see `scale`
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y down
SPEEDS = (1.0, 2.0)  # pixels a frame, see `scale`
SPLITS = ("train", "held_out")

_HALF_SIDE = np.sqrt(np.pi) / 2  # of the square, for the area of the unit circle
_INRADIUS = np.sqrt(np.pi / np.sqrt(27))  # of the equilateral triangle, likewise
_CANDIDATES = 64  # places tried for the second sprite


class Combination(NamedTuple):
    """The attributes a caption can name. `direction` is None in an image."""

    colour: str
    shape: str
    size: str
    direction: str | None
    background: str


@dataclass(frozen=True)
class Sprite:
    """One moving shape. `x`, `y`: centre of mass in frame 0, pixels from the top left corner of
    the canvas; `speed`: pixels a frame; `direction` None stands still.

    Raises:
      ValueError: an attribute outside the world's vocabulary.
    """

    colour: str
    shape: str
    size: str
    direction: str | None
    x: float
    y: float
    speed: float

    def __post_init__(self):
        known = (COLOURS, SHAPES, SIZES, (None, *DIRECTIONS))
        values = (self.colour, self.shape, self.size, self.direction)
        for value, choices in zip(values, known, strict=True):
            if value not in choices:
                raise ValueError(f"unknown attribute {value!r}; choose from {list(choices)}")


@dataclass(frozen=True)
class Scene:
    """All that a clip shows. The first sprite is in front."""

    sprites: tuple[Sprite, ...]
    background: str
    frames: int
    height: int
    width: int


def scale(height: int, width: int) -> float:
    """Factor for sizes and speeds, which are given for a short side of 64 pixels."""
    return min(height, width) / 64


def is_held_out(colour: str, shape: str, direction: str | None, background: str) -> bool:
    """The fixed rule of the split: a quarter of the (colour, shape, direction) triples of clips,
    and of the (colour, shape, background) triples of images, whose direction is None."""
    last = (
        list(BACKGROUNDS).index(background)
        if direction is None
        else list(DIRECTIONS).index(direction)
    )
    return (list(COLOURS).index(colour) + SHAPES.index(shape) + last) % 4 == 0


def held_out_combinations(images: bool = False) -> tuple[Combination, ...]:
    """Every combination that training never shows: 144 of clips, or 36 of images."""
    every = itertools.product(
        COLOURS, SHAPES, SIZES, (None,) if images else DIRECTIONS, BACKGROUNDS
    )
    return tuple(Combination(c, s, z, d, b) for c, s, z, d, b in every if is_held_out(c, s, d, b))


@functools.cache
def _choices(split: str, image: bool, background: str) -> tuple[tuple[str, str, str | None], ...]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {list(SPLITS)}")
    every = itertools.product(COLOURS, SHAPES, (None,) if image else DIRECTIONS)
    return tuple(t for t in every if is_held_out(*t, background) == (split == "held_out"))


def draw_scene(
    rng: np.random.Generator, bucket: Bucket, split: str = "train", two_sprites: float = 0.25
) -> Scene:
    """A random scene of the bucket's shape, every sprite of which belongs to the split.

    Args:
      rng: source of all chance.
      bucket: frames, height and width; one frame gives an image without directions.
      split: "train" or "held_out", see `is_held_out`.
      two_sprites: probability of a second sprite, of another colour.

    Raises:
      ValueError: an unknown split.
    """
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    count = 1 + (rng.random() < two_sprites)
    chosen: list[Combination] = []
    while len(chosen) < count:
        choices = _choices(split, bucket.frames == 1, background)
        colour, shape, direction = choices[rng.integers(len(choices))]
        size = list(SIZES)[rng.integers(len(SIZES))]
        if colour not in (other.colour for other in chosen):
            chosen.append(Combination(colour, shape, size, direction, background))
    return place(rng, bucket, chosen)


def place(rng: np.random.Generator, bucket: Bucket, combinations: Sequence[Combination]) -> Scene:
    """A scene of one or two given combinations at random positions and speeds.

    Sprites start fully inside the frame, and apart from each other where the canvas has the room.

    Raises:
      ValueError: not one or two combinations, or backgrounds that differ.
    """
    if len(combinations) not in (1, 2) or len({c.background for c in combinations}) != 1:
        raise ValueError(
            f"a scene has one or two sprites over one background, got {list(combinations)}; "
            "pass one or two combinations of the same background"
        )
    factor = scale(bucket.height, bucket.width)
    canvas = np.array((bucket.width, bucket.height))
    sprites: list[Sprite] = []
    for combination in combinations:
        radius = SIZES[combination.size] * factor
        low, high = _extent(combination.shape, radius)
        places = low + rng.random((_CANDIDATES, 2)) * (canvas - high - low)
        best = 0
        for other in sprites:
            gap = np.abs(places - (other.x, other.y))
            distance = np.hypot(*np.minimum(gap, canvas - gap).T)
            enough = 1.1 * (radius + SIZES[other.size] * factor)
            # argmax: the first place far enough, or the farthest if there is none.
            best = int(np.argmax(np.minimum(distance, enough)))
        x, y = (float(v) for v in places[best])
        speed = 0.0 if combination.direction is None else float(rng.uniform(*SPEEDS)) * factor
        sprites.append(Sprite(*combination[:4], x, y, speed))
    return Scene(
        tuple(sprites), combinations[0].background, bucket.frames, bucket.height, bucket.width
    )


def _extent(shape: str, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """How far the shape reaches from its centre: ((left, above), (right, below)) in pixels."""
    if shape == "triangle":
        inner = _INRADIUS * radius
        return np.array((np.sqrt(3) * inner, 2 * inner)), np.array((np.sqrt(3) * inner, inner))
    reach = radius * (_HALF_SIDE if shape == "square" else 1)
    return np.array((reach, reach)), np.array((reach, reach))


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 1, from the signed distance to its outline.

    Args:
      shape: one of SHAPES; all have the area of the circle of that radius. Triangles point up.
      dx: pixel centres minus the shape's centre, pixels to the right; broadcasts with dy.
      dy: likewise, pixels downwards.
      radius: pixels.
    """
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - _HALF_SIDE * radius
    else:
        sides = np.sqrt(0.75) * np.abs(dx) - 0.5 * dy
        distance = np.maximum(sides, dy) - _INRADIUS * radius
    return np.clip(0.5 - distance, 0, 1)


def track(sprite: Sprite, frames: int) -> np.ndarray:
    """Centres of a sprite, float [F, 2] as (x, y), not wrapped around the canvas."""
    step = np.array(DIRECTIONS.get(sprite.direction, (0, 0))) * sprite.speed
    return np.array((sprite.x, sprite.y)) + np.arange(frames)[:, None] * step


def render(scene: Scene) -> np.ndarray:
    """The pixels of a scene, anti-aliased, uint8 [F, H, W, 3]."""
    video = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    video[:] = BACKGROUNDS[scene.background]
    index = np.arange(scene.frames)[:, None, None]
    for sprite in reversed(scene.sprites):
        radius = SIZES[sprite.size] * scale(scene.height, scene.width)
        reach = int(np.ceil(max(max(side) for side in _extent(sprite.shape, radius)))) + 1
        window = np.arange(-reach, reach + 1)
        centre = track(sprite, scene.frames)
        # Only a window around the sprite is touched; its indices wrap around the torus.
        near = np.floor(centre).astype(int)[..., None] + window  # [F, 2, window]
        offset = (near + 0.5 - centre[..., None]).astype(np.float32)
        alpha = coverage(sprite.shape, offset[:, 0, None, :], offset[:, 1, :, None], radius)
        at = (index, near[:, 1, :, None] % scene.height, near[:, 0, None, :] % scene.width)
        below = video[at].astype(np.float32)
        colour = np.array(COLOURS[sprite.colour], np.float32)
        video[at] = (below + alpha[..., None].astype(np.float32) * (colour - below) + 0.5).astype(
            np.uint8
        )
    return video
