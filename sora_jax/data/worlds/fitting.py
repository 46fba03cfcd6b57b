"""Which shape the pixels of one colour are, how large, where in each frame, and moving which way.

Rendered templates of the three shapes are tried at every place of the torus.
"""

from dataclasses import dataclass

import numpy as np

from sora_jax.data.worlds.scenes import DIRECTIONS, SHAPES, SIZES, coverage

# The tolerances were set on clean, blurred, noisy and recoloured renders; the tests hold them.
_FIT = 0.78  # mean intersection over union that a shape needs
_CLEARER = 0.01  # and by how much it must beat the other shapes
_FRAME_VISIBLE = 0.4  # of the template, to count a frame
_RADII = np.linspace(0.9, 1.1, 5)  # tried around the radius that the area suggests
_MIN_SPEED = 0.4  # pixels a frame, for a short side of 64
_MAX_DRIFT = 0.5  # motion across the direction, as a share of the motion along it
_STEADY = 0.7  # share of steps that must agree with the mean step
_STEP_ERROR = 1.5  # pixels that such a step may differ by, for a short side of 64


@dataclass(frozen=True)
class SpriteReading:
    """One object found. `shape` None: fits no shape; `direction` None: an image, or no steady
    motion. `radius`: of the circle of the same area, pixels. `fit`: mean intersection over union
    with the best template. `centres`: float [F, 2] as (x, y), NaN in frames that hide it."""

    colour: str
    shape: str | None
    size: str
    direction: str | None
    radius: float
    fit: float
    centres: np.ndarray


def fit_sprite(
    colour: str, amount: np.ndarray, hidden: np.ndarray, factor: float
) -> tuple[SpriteReading, np.ndarray]:
    """The best template for a colour, and the amount outside of it, [F, H, W].

    Args:
      amount: of the colour, float [F, H, W].
      hidden: bool [F, H, W], pixels of other objects, which may lie in front of this one.
      factor: of the canvas, see `scale`.
    """
    height, width = amount.shape[1:]
    shown = (~hidden).astype(np.float32)
    spectra = np.fft.rfft2(amount), np.fft.rfft2(shown)
    area = amount.sum((1, 2))
    # Occlusion only takes away, so the radius comes from the frames that show most.
    radius = float(np.sqrt(np.quantile(area, 0.8) / np.pi))
    fits = []
    for shape in SHAPES:
        centres = _locate(spectra, area, shape, radius, (height, width))
        dx, dy = _offsets(centres[:, 0], width), _offsets(centres[:, 1], height)
        tries = []
        for ratio in _RADII:
            template = _template(shape, dx, dy, ratio * radius)
            whole = template.sum((1, 2))
            template *= shown
            score = np.minimum(template, amount).sum((1, 2)) / np.maximum(
                np.maximum(template, amount).sum((1, 2)), 1
            )
            seen = template.sum((1, 2)) > _FRAME_VISIBLE * whole
            fit = float(score[seen].mean()) if seen.any() else 0.0
            tries.append((fit, float(ratio * radius), seen & (score > 0.5 * _FIT)))
        fits.append((*max(tries, key=lambda t: t[0]), shape, centres))
    second, best = sorted(fits, key=lambda t: t[0])[-2:]
    fit, radius, seen, shape, centres = best
    clear = fit >= max(_FIT, second[0] + _CLEARER)
    dx, dy = _offsets(centres[:, 0], width), _offsets(centres[:, 1], height)
    near = coverage(shape, dx[:, None, :], dy[:, :, None], radius + 2.0 * factor) > 0
    rest = np.where(near & seen[:, None, None], 0, amount)
    centres[~seen] = np.nan
    threshold = np.sqrt(SIZES["small"] * SIZES["large"]) * factor
    sprite = SpriteReading(
        colour,
        shape if clear else None,
        "small" if radius < threshold else "large",
        _direction(centres, width, height, factor),
        radius,
        fit,
        centres,
    )
    return sprite, rest


def _offsets(centre: np.ndarray, length: int) -> np.ndarray:
    """Signed distances of pixel centres from points [F] around a circle, float [F, length]."""
    distance = (np.arange(length) + 0.5 - centre[:, None] + length / 2) % length - length / 2
    return distance.astype(np.float32)


def _template(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """A shape as a sharpened amount, [F, H, W], from its `_offsets` [F, W] and [F, H]."""
    alpha = coverage(shape, dx[:, None, :], dy[:, :, None], radius)
    return np.clip(2 * alpha - 0.5, 0, 1)


def _locate(
    spectra: tuple[np.ndarray, np.ndarray],
    area: np.ndarray,
    shape: str,
    radius: float,
    canvas: tuple[int, int],
) -> np.ndarray:
    """Where on the torus a shape fits best in each frame, as (x, y) float [F, 2].

    Args:
      spectra: of the amount and of the pixels that nothing else covers, from rfft2.
      area: sum of the amount [F].
      shape: one of SHAPES.
      radius: pixels.
      canvas: height and width.
    """
    height, width = canvas
    corner = np.full(1, 0.5)
    template = _template(shape, _offsets(corner, width), _offsets(corner, height), radius)
    overlap, shown = (
        np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(template)), canvas) for spectrum in spectra
    )
    score = overlap / np.maximum(shown + area[:, None, None] - overlap, 1)
    rows = np.arange(len(score))
    y, x = np.divmod(score.reshape(len(score), -1).argmax(1), width)
    peak = score[rows, y, x]
    result = []
    for position, low, high in (
        (x, score[rows, y, (x - 1) % width], score[rows, y, (x + 1) % width]),
        (y, score[rows, (y - 1) % height, x], score[rows, (y + 1) % height, x]),
    ):
        # The peak of an overlap is a tent, not a parabola: its sides have equal slopes.
        slope = np.maximum(peak - np.minimum(low, high), 1e-6)
        result.append(position + 0.5 + 0.5 * (high - low) / slope)
    return np.stack(result, -1)


def _direction(centres: np.ndarray, width: int, height: int, factor: float) -> str | None:
    """The direction of a steady motion along the torus, or None.

    Args:
      centres: float [F, 2] as (x, y), NaN where not seen.
    """
    seen = np.flatnonzero(~np.isnan(centres[:, 0]))
    if len(seen) < max(2, len(centres) // 2):
        return None
    canvas = np.array((width, height))
    gaps = np.diff(seen)[:, None]
    moved = np.diff(centres[seen], axis=0)
    # Across frames that hide the sprite the wrapped difference may be a turn short: no sprite is
    # hidden for long enough to go half way round.
    steps = ((moved + canvas / 2) % canvas - canvas / 2) / gaps
    mean = np.average(steps, axis=0, weights=gaps[:, 0])
    along, across = np.abs(mean).max(), np.abs(mean).min()
    steady = np.mean(np.hypot(*(steps - mean).T) < _STEP_ERROR * factor)
    if along < _MIN_SPEED * factor or across > _MAX_DRIFT * along or steady < _STEADY:
        return None
    axis = int(np.abs(mean).argmax())
    heading = [0, 0]
    heading[axis] = int(np.sign(mean[axis]))
    return next(name for name, vector in DIRECTIONS.items() if vector == tuple(heading))
