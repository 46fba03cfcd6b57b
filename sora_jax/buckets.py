"""Buckets: the few shapes a run compiles for, which clip goes to which, how many make a batch."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Width over height of what people film: wide, 4:3, square, and these upright.
ASPECT_RATIOS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)
# Buckets whose aspect ratio (as a logarithm) is this close to the best one count as equally close:
# rounding sides to multiples moves the ratio, and must not decide against a longer duration.
_SAME_ASPECT = 0.05
# Likewise areas: those at least this share of the largest count as equally large.
_SAME_AREA = 0.75
# A clip loses at most this share of a frame's pixels to cropping, and is enlarged at most so much.
_MAX_CROP = 0.5
_MAX_UPSCALE = 1.25
# Shapes are compared with every bucket this many at a time, which bounds the memory it takes.
_CHUNK = 65536


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """A shape of clip: pixel frames, height and width. An image bucket has one frame."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def _check_frames(frames: int, temporal: int) -> None:
    if frames >= 1 and (frames - 1) % temporal == 0:
        return
    below = 1 + temporal * max((frames - 1) // temporal, 0)
    raise ValueError(
        f"a bucket of {frames} frames does not compress: the count must be 1 + {temporal}k. "
        f"The nearest are {below} and {below + temporal}."
    )


def make_buckets(
    *,
    area: int,
    aspect_ratios: Sequence[float],
    frames: Sequence[int],
    multiple: int = 16,
    temporal: int = 4,
) -> tuple[Bucket, ...]:
    """Every duration at every aspect ratio, at about the same area.

    Args:
      area: pixels of one frame, approximately.
      aspect_ratios: width / height of each shape.
      frames: durations in pixel frames, each 1 + `temporal` * k; 1 is for images.
      multiple: what heights and widths are multiples of (VAE stride times patch size).
      temporal: the VAE's stride in time.

    Returns:
      The buckets, sorted, without duplicates.

    Raises:
      ValueError: a duration that does not compress, a ratio or an area out of range, nothing to do.
    """
    if not aspect_ratios or not frames:
        raise ValueError(
            f"no buckets from aspect_ratios={list(aspect_ratios)} and frames={list(frames)}: "
            "give at least one of each."
        )
    if area < multiple * multiple:
        raise ValueError(
            f"an area of {area} pixels is less than one {multiple}x{multiple} block: "
            f"ask for at least {multiple * multiple}."
        )
    for count in frames:
        _check_frames(count, temporal)
    return tuple(
        sorted(
            {
                Bucket(count, *_sides(area, ratio, multiple))
                for ratio, count in itertools.product(aspect_ratios, frames)
            }
        )
    )


def _sides(area: int, ratio: float, multiple: int) -> tuple[int, int]:
    """Height and width, multiples of `multiple`, nearest in logarithm to the area and the ratio."""
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError(f"aspect ratio {ratio}: it is width / height, a positive number.")

    def around(side: float) -> set[int]:
        blocks = math.floor(side / multiple)
        return {max(blocks, 1) * multiple, (blocks + 1) * multiple}

    def miss(sides: tuple[int, int]) -> float:
        height, width = sides
        return abs(math.log(height * width / area)) + abs(math.log(width / height / ratio))

    heights, widths = around(math.sqrt(area / ratio)), around(math.sqrt(area * ratio))
    return min(itertools.product(sorted(heights), sorted(widths)), key=miss)


def tokens(bucket: Bucket, *, temporal: int = 4, spatial: int = 16) -> int:
    """Transformer tokens of one clip: (1 + (frames - 1) / temporal) * height / s * width / s.

    Args:
      bucket: the shape of the clip.
      temporal: the VAE's stride in time.
      spatial: the VAE's stride in space times the patch size.
    """
    _check_frames(bucket.frames, temporal)
    if bucket.height % spatial or bucket.width % spatial:
        raise ValueError(
            f"bucket {bucket}: height and width must be multiples of {spatial}; "
            f"make_buckets(multiple={spatial}) gives such buckets."
        )
    latent_frames = 1 + (bucket.frames - 1) // temporal
    return latent_frames * (bucket.height // spatial) * (bucket.width // spatial)


def batch_size(
    bucket: Bucket,
    *,
    token_budget: int,
    most_clips: int = 0,
    multiple_of: int = 1,
    temporal: int = 4,
    spatial: int = 16,
) -> int:
    """Clips a batch so that every bucket's step costs about `token_budget` tokens.

    No batch has more than `most_clips` (0: no such limit): where few tokens make a clip, as in
    images, hundreds of clips a step are fewer steps and little better ones. The result is a
    multiple of `multiple_of` (the devices or hosts that share the batch) and at least that, even
    where one clip for each already exceeds the budget.

    Raises:
      ValueError: a limit that is negative, or no budget.
    """
    if token_budget < 1 or multiple_of < 1:
        raise ValueError(
            f"token_budget={token_budget} and multiple_of={multiple_of} must be positive."
        )
    if most_clips < 0:
        raise ValueError(f"most_clips={most_clips} must be positive, or 0 for no limit.")
    clips = token_budget // tokens(bucket, temporal=temporal, spatial=spatial)
    clips = min(clips, most_clips or clips)
    return max(clips // multiple_of, 1) * multiple_of


class Assignment(NamedTuple):
    """Where each clip of a collection goes.

    Attributes:
      choice: int32 [len], the number of each clip's bucket; -1 where none fits.
      crop_loss: float32 [len], the share of each clip's pixels that cropping removes.
      unassigned: how many clips fit no bucket, by reason.
    """

    choice: np.ndarray
    crop_loss: np.ndarray
    unassigned: Mapping[str, int]


def assign_all(buckets: Sequence[Bucket], shapes: np.ndarray) -> Assignment:
    """The bucket of every clip: the closest aspect ratio, then the longest duration it fills.

    A clip fills a bucket that is no longer than itself, that it covers when enlarged at most
    _MAX_UPSCALE times, and where cropping takes at most _MAX_CROP of it. Among those, the closest
    aspect ratio wins, then the longest duration, then the largest area. Images (one frame) go to
    buckets of one frame, videos to the others.

    Args:
      buckets: the candidates.
      shapes: int [len, 3], frames, height and width of each clip.

    Raises:
      ValueError: there are no buckets.
    """
    if not buckets:
        raise ValueError("there are no buckets to assign clips to; make_buckets makes some.")
    unique, inverse = np.unique(np.asarray(shapes).reshape(-1, 3), axis=0, return_inverse=True)
    parts = [
        _assign_unique(buckets, unique[start : start + _CHUNK])
        for start in range(0, max(len(unique), 1), _CHUNK)
    ]
    choice, crop_loss, reason = (np.concatenate(part)[inverse.reshape(-1)] for part in zip(*parts))
    texts = _reasons(buckets)
    counts = np.bincount(reason[choice < 0], minlength=len(texts))
    unassigned = {text: int(count) for text, count in zip(texts, counts) if count}
    return Assignment(choice, crop_loss, unassigned)


def _reasons(buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """Why a clip fits no bucket, in the order in which `_assign_unique` asks."""
    shortest = min((bucket.frames for bucket in buckets if bucket.frames > 1), default=1)
    return (
        "images, but no bucket has 1 frame",
        "videos, but every bucket has 1 frame",
        f"too short (fewer than {shortest} frames)",
        f"too small (would be enlarged more than {_MAX_UPSCALE:g} times)",
        f"aspect ratio too far (would lose more than {_MAX_CROP:.0%} to cropping)",
    )


def _assign_unique(
    buckets: Sequence[Bucket], shapes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choice, crop loss and reason (meaningful where the choice is -1), each [len]."""
    table = np.array([(b.frames, b.height, b.width) for b in buckets], np.float64)
    frames, height, width = table.T[:, None, :]  # each [1, buckets]
    clip_frames, clip_height, clip_width = shapes.astype(np.float64).T[:, :, None]  # [len, 1]
    image = clip_frames == 1
    kind = np.where(image, frames == 1, frames > 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a clip of no pixels is too small
        scale = np.maximum(height / clip_height, width / clip_width)
        crop = 1 - height * width / (clip_height * clip_width * scale * scale)
        distance = np.abs(np.log((width / height) / (clip_width / clip_height)))
    long_enough = kind & (frames <= clip_frames)
    large_enough = long_enough & (scale <= _MAX_UPSCALE)
    fits = large_enough & (crop <= _MAX_CROP)

    reason = np.select(
        [
            ~kind.any(axis=1) & image[:, 0],
            ~kind.any(axis=1),
            ~long_enough.any(axis=1),
            ~large_enough.any(axis=1),
        ],
        [0, 1, 2, 3],
        default=4,
    ).astype(np.int32)

    def keep(mask: np.ndarray, value: np.ndarray, slack: float) -> np.ndarray:
        """The entries of the mask whose value is within `slack` of the row's smallest."""
        masked = np.where(mask, value, np.inf)
        return mask & (masked <= masked.min(axis=1, keepdims=True) + slack)

    best = keep(fits, distance, _SAME_ASPECT)
    best = keep(best, -frames, 0.0)
    best = keep(best, -np.log(height * width), -math.log(_SAME_AREA))
    best = keep(best, distance, 0.0)
    found, column = best.any(axis=1), best.argmax(axis=1)
    choice = np.where(found, column, -1).astype(np.int32)
    loss = np.where(found, crop[np.arange(len(shapes)), column], 0).clip(0, 1)
    return choice, loss.astype(np.float32), reason


def assign(buckets: Sequence[Bucket], frames: int, height: int, width: int) -> Bucket | None:
    """The bucket of one clip by the rule of `assign_all`, or None where none fits."""
    choice = assign_all(buckets, np.array([[frames, height, width]])).choice[0]
    return buckets[choice] if choice >= 0 else None
