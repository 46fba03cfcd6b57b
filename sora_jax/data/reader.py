"""One clip of a bucket with one of its captions, or another clip where it cannot be read."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sora_jax.buckets import Bucket
from sora_jax.data.source import ClipSource

# After this many failures in a row the fault is not in the clips (an unmounted disk, a bug), and
# the run stops.
_ATTEMPTS = 16

Failures = list[tuple[int, str]]  # clip and error
ReadClip = tuple[dict[str, Any], Failures, int]


class Reader:
    """Reads one clip of a bucket and chooses its caption's tokens or features: grain's random map.

    A call takes the clip's position among the bucket's clips and returns its arrays, the clips that
    failed before it with their errors, and 1 if it has no caption of a wanted kind, else 0. With
    `look` the arrays have `pixels` too, what that makes of the frames.

    Raises:
      ValueError: many clips in a row cannot be read.
    """

    def __init__(
        self,
        source: ClipSource,
        clips: np.ndarray,
        bucket: Bucket,
        tokenize: Callable[[str], np.ndarray] | None,
        caption_weights: Mapping[str, float],
        caption_dropout: float,
        look: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._look = look
        self._source = source
        self._clips = clips
        self._bucket = bucket
        self._tokenize = tokenize
        self._caption_weights = dict(caption_weights)
        self._caption_dropout = caption_dropout
        # Substitutes are sought far away, since neighbours on disk tend to be damaged together;
        # coprime to the count, the stride visits every clip.
        count = len(clips)
        self._stride = next(
            (s for s in range(round(0.618 * count), 0, -1) if math.gcd(s, count) == 1), 1
        )

    def __call__(self, position: int, rng: np.random.Generator) -> ReadClip:
        # All draws come first, so that a source that draws more or less, or fails halfway, changes
        # nothing else. Each read has a generator of its own: grain reuses `rng` for other clips.
        key, pick, drop = int(rng.integers(2**63)), rng.random(), rng.random()
        clip, failures = self._read(int(position), key)
        captions, features = clip.pop("captions"), clip.pop("text", None)
        if self._tokenize is None and features is None:
            return clip, failures, 0
        kinds = [kind for kind, weight in self._caption_weights.items() if weight]
        kinds = [kind for kind in kinds if captions.get(kind)]
        kind = ""  # of the empty caption
        if kinds and drop >= self._caption_dropout:
            edges = np.cumsum([self._caption_weights[kind] for kind in kinds])
            kind = kinds[int(np.searchsorted(edges[:-1], pick * edges[-1], "right"))]
        if features is not None:
            clip["text"] = features[kind]
        else:
            clip["tokens"] = np.asarray(self._tokenize(captions.get(kind, "")), np.int32)
        return clip, failures, int(not kinds)

    def _read(self, position: int, key: int) -> tuple[dict[str, Any], Failures]:
        failures = []
        count = len(self._clips)
        for attempt in range(min(count, _ATTEMPTS)):
            index = int(self._clips[(position + attempt * self._stride) % count])
            try:
                clip = dict(
                    self._source.read(index, self._bucket, np.random.default_rng((key, attempt)))
                )
                self._check(clip)
                if self._look is not None:
                    clip["pixels"] = self._look(clip["frames"])
                return clip, failures
            except Exception as error:  # whatever a decoder makes of damaged bytes
                failures.append((index, f"{type(error).__name__}: {error}"))
                last = error
        raise ValueError(
            f"bucket {self._bucket}: {len(failures)} clips in a row could not be read, "
            f"clip {failures[-1][0]} because of {failures[-1][1]}. "
            "Check that the data set is complete and readable."
        ) from last

    def _check(self, clip: dict[str, Any]) -> None:
        frames, bucket = clip.get("frames"), self._bucket
        shape = (bucket.frames, bucket.height, bucket.width, 3)
        if frames is not None and (frames.shape != shape or frames.dtype != np.uint8):
            raise ValueError(f"read as {frames.dtype} {frames.shape} instead of uint8 {shape}")


def stack(clips: Sequence[ReadClip]) -> ReadClip:
    """One batch of the clips, with the failures and the count of uncaptioned ones beside it."""
    arrays, failures, uncaptioned = zip(*clips)
    batch = {name: np.stack([clip[name] for clip in arrays]) for name in arrays[0]}
    return batch, [failure for some in failures for failure in some], sum(uncaptioned)
