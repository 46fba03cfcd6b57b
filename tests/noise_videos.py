"""Videos of noise as prompts, and how far frames lie apart."""

import numpy as np

from tests.tiny_model import SIZE

FPS, FRAMES = 8, 17


def frames(count, seed=0):
    """A video of noise that changes slowly, so that neighbouring frames are alike."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, SIZE[1], SIZE[0], 3)) * 10
    return np.clip(128 + np.cumsum(steps, axis=0), 0, 255).astype(np.uint8)


def distance(a, b):
    return np.abs(a.astype(int) - b).mean()


def through_vae(model, video):
    return np.concatenate(list(model.decode(model.encode(video[None]))), axis=1)[0]
