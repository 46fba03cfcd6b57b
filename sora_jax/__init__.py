"""An open JAX implementation of the Sora report.

import sora_jax
model = sora_jax.load()
clip = model.sample("a red circle moves right", size=(96, 64), frames=33, seed=0)
sora_jax.save(clip, "clip.mp4", fps=model.fps)
"""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

__version__ = "0.1.0"

# Where each name of the facade lives. Imported on first use: the processes that read data import
# this package too, and have no use for jax.
_HOMES = {
    "Model": ("sora_jax.pipeline", "Model"),
    "Guidance": ("sora_jax.diffusion.guidance", "Guidance"),
    "load": ("sora_jax.loading", "load"),
    "animate": ("sora_jax.prompting", "animate"),
    "extend": ("sora_jax.prompting", "extend"),
    "connect": ("sora_jax.passages", "connect"),
    "loop": ("sora_jax.passages", "loop"),
    "edit": ("sora_jax.prompting", "edit"),
    "enlarge": ("sora_jax.prompting", "enlarge"),
    "from_keyframes": ("sora_jax.prompting", "from_keyframes"),
    "endless_loop": ("sora_jax.endless", "endless_loop"),
    "long_video": ("sora_jax.endless", "long_video"),
}

__all__ = ["save", *_HOMES]


def save(
    clip: np.ndarray | Iterator[np.ndarray], path: str | os.PathLike, fps: float = 24.0
) -> None:
    """Writes frames uint8 [F, H, W, 3] as .mp4, .gif or .webp, or an image as .png, by suffix.

    What `long_video` makes is written while it is made.
    """
    importlib.import_module("sora_jax.video_io").write(path, clip, fps=fps)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sora_jax' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
