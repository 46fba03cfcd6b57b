"""Reads a shapes clip back from its pixels, and checks it against what was asked for.

Analysis by synthesis. Each pixel is unmixed into background and one palette colour; each colour
is then fitted, frame by frame, with rendered templates of the three shapes at every place of the
torus. A colour whose best template fits badly is an object without a shape, and one whose places
do not follow a steady course is an object without a direction: noise and blobs are never right.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sora_jax.data.worlds.fitting import SpriteReading, fit_sprite
from sora_jax.data.worlds.scenes import BACKGROUNDS, COLOURS, SIZES, Scene, Sprite, scale

# The tolerances were set on clean, blurred, noisy and recoloured renders; the tests hold them.
_BACKGROUND_DISTANCE = 50.0  # RGB units a background pixel may lie from the median
_BACKGROUND_SHARE = 0.5  # of all pixels that must show the background
_NEAR_BACKGROUND = 20.0  # RGB units within which a pixel is background
_OFF_COLOUR = 0.4  # distance from the line of mixtures, in units of its length
_FAINT = 0.35  # amount below which a pixel does not count as coloured
_OBJECT_AREA = 0.35  # of the small circle: smaller specks are not objects
_OBJECT_FRAMES = 0.3  # share of frames in which an object has that area


@dataclass(frozen=True)
class Reading:
    """All that a clip shows. `background` None: no flat background of the palette."""

    background: str | None
    sprites: tuple[SpriteReading, ...]


def read(frames: np.ndarray) -> Reading:
    """Background and objects of a clip or image.

    Objects are listed by colour. What remains of a colour after its best template is taken away
    is listed as another object without a shape, if it is substantial: an opened area of at least
    0.35 of the small circle, in at least 0.3 of the frames.

    Args:
      frames: uint8 [F, H, W, 3].

    Raises:
      ValueError: frames of another type or shape.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}; "
            "round and clip float pixels to 0..255 first, and give an image a frame axis"
        )
    pixels = frames.astype(np.float32)
    background, base = _background(pixels)
    if background is None:
        return Reading(None, ())
    amounts = _unmix(pixels, base)
    factor = scale(*frames.shape[1:3])
    least = _OBJECT_AREA * np.pi * (SIZES["small"] * factor) ** 2
    # Opening with this square drops specks and rims.
    side = 2 * max(1, round(factor)) + 1
    brush = (1, side, side)
    objects = {c: a for c, a in amounts.items() if _substantial(a, least, brush)}
    sprites = []
    for colour, amount in objects.items():
        others = [a for c, a in objects.items() if c != colour]
        hidden = np.sum(others, axis=0) > 0.25 if others else np.zeros(amount.shape, bool)
        sprite, rest = fit_sprite(colour, amount, hidden, factor)
        sprites.append(sprite)
        if _substantial(rest, least, brush):
            sprites.append(
                SpriteReading(
                    colour, None, sprite.size, None, sprite.radius, 0.0, sprite.centres * np.nan
                )
            )
    return Reading(background, tuple(sprites))


def check(frames: np.ndarray, expected: Scene | Sequence[Sprite]) -> dict[str, bool]:
    """Whether a clip shows what was asked for.

    Sprites asked for and found are paired so that colours agree if they can, then shapes, then
    directions. An attribute is right if it is right for every sprite. A substantial object that
    nobody asked for, or one that is missing, makes `count` and `all` wrong.

    Args:
      frames: uint8 [F, H, W, 3].
      expected: the sprites asked for (positions and speeds do not matter), or their scene.

    Returns:
      colour, shape, direction, size, count and background (True unless a scene names another
      one), and all = colour and shape and direction and count.
    """
    reading = read(frames)
    asked = expected.sprites if isinstance(expected, Scene) else tuple(expected)
    names = ("colour", "shape", "direction", "size")
    best = dict.fromkeys(names, False)
    for found in itertools.permutations(reading.sprites, len(asked)):
        pairs = list(zip(asked, found, strict=True))
        agree = {n: all(getattr(a, n) == getattr(f, n) for a, f in pairs) for n in names}
        if tuple(agree.values()) > tuple(best.values()):
            best = agree
    best["count"] = len(reading.sprites) == len(asked)
    best["background"] = not isinstance(expected, Scene) or (
        reading.background == expected.background
    )
    best["all"] = best["colour"] and best["shape"] and best["direction"] and best["count"]
    return best


def _background(pixels: np.ndarray) -> tuple[str | None, np.ndarray]:
    """Name and actual colour (of this clip, float [3]) of the background, or None.

    Sprites cover less than half of a canvas, so the median is a background pixel; in noise, only
    few pixels come close to it.
    """
    base = np.median(pixels, axis=(0, 1, 2))
    member = np.square(pixels - base).sum(-1) < _BACKGROUND_DISTANCE**2
    palette = np.array([*BACKGROUNDS.values(), *COLOURS.values()])
    nearest = int(np.square(palette - base).sum(-1).argmin())
    if member.mean() < _BACKGROUND_SHARE or nearest >= len(BACKGROUNDS):
        return None, base
    return list(BACKGROUNDS)[nearest], base


def _unmix(pixels: np.ndarray, base: np.ndarray) -> dict[str, np.ndarray]:
    """How much of each colour a pixel holds, float [F, H, W] in 0..1, at most one colour each.

    A pixel at an edge is a mixture base + a (colour - base); to take the colour of the nearest
    such line, instead of the nearest colour, keeps blue on white from getting a cyan rim.
    """
    above = (pixels - base).reshape(-1, 3)
    energy = np.square(above).sum(1)
    coloured = np.flatnonzero(energy > _NEAR_BACKGROUND**2)  # a fraction of all pixels: faster
    lines = (np.array(list(COLOURS.values())) - base).astype(np.float32)  # [colours, 3]
    length = np.square(lines).sum(1, keepdims=True)
    along = lines @ above[coloured].T
    amounts = np.clip(along / length, 0, 1)
    # |above - a line|^2, without an array of [colours, pixels, 3].
    errors = energy[coloured] - amounts * (2 * along - amounts * length)
    fits = (errors == errors.min(0)) & (errors < _OFF_COLOUR**2 * length)
    result = {}
    for i, colour in enumerate(COLOURS):
        amount = np.zeros(len(above), np.float32)
        amount[coloured[fits[i]]] = _sharpen(amounts[i, fits[i]])
        result[colour] = amount.reshape(pixels.shape[:3])
    return result


def _sharpen(amount: np.ndarray) -> np.ndarray:
    """Stretches the amounts around half of their plateau to 0..1, which undoes paleness and blur
    and clears the faint noise of the background."""
    strong = amount[amount > _FAINT]
    plateau = np.median(strong) if strong.size else 1.0
    return np.clip(2 * amount / plateau - 0.5, 0, 1)


def _substantial(amount: np.ndarray, least: float, brush: tuple[int, int, int]) -> bool:
    """Whether enough frames hold an area of at least `least` pixels that survives opening."""
    mask = amount > 0.5
    if np.mean(mask.sum((1, 2)) >= least) < _OBJECT_FRAMES:
        return False  # without the cost of opening
    opened = ndimage.grey_opening(mask.astype(np.uint8), brush, mode="wrap")
    return bool(np.mean(opened.sum((1, 2)) >= least) >= _OBJECT_FRAMES)
