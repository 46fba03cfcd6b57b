"""What the loader needs of clips: their shapes without decoding, then each at one bucket."""

from typing import Any, Protocol

import numpy as np

from sora_jax.buckets import Bucket


class ClipSource(Protocol):
    """Random-access captioned clips: a dataset on disk, a rendered world, precomputed latents.

    Attributes:
      fps: frame rate of the clips that `read` returns.
      shapes: int32 [len, 3], each clip's frames at `fps`, height and width; an image has one frame.
    """

    fps: float
    shapes: np.ndarray

    def __len__(self) -> int: ...

    def captions(self, index: int) -> dict[str, str]:
        """The captions of clip `index` by kind, without decoding its frames."""
        ...

    def read(self, index: int, bucket: Bucket, rng: np.random.Generator) -> dict[str, Any]:
        """Clip `index` at exactly the bucket's shape.

        Args:
          index: 0 <= index < len(self).
          bucket: the wanted frames, height and width; the clip must fill it.
          rng: draws the start time and the position of the crop.

        Returns:
          `frames` uint8 [F, H, W, 3] (or `latents` float32 [T, h, w, C]) and `captions`, a dict
          from kind ("short", "detailed") to text. With precomputed text features also `text`, a
          dict from kind, and from "" for the empty caption, to float16 [L, D].
        """
        ...
