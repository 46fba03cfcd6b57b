"""`train.py` with a task that compiles in no time: one process of several, for tests of hosts.

python tests/hosts_program.py [flags of train.py]
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import train
from sora_jax.training import loop
from sora_jax.training.clips import make_data


class Colour:
    """Predicts a clip's mean colour from a few of its pixels."""

    def __init__(self):
        self.frozen, self.start = {"scale": np.float32(255.0)}, None

    def init(self, key):
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None))
        return {"kernel": kernel(key, (48, 3))}

    def loss(self, params, frozen, batch, key):
        frames = batch["frames"].astype(jnp.float32) / frozen["scale"]
        x = frames[:, 0, 0, :16].reshape(-1, 48)
        x = x + 0.1 * jax.random.normal(key, x.shape)
        return jnp.mean((x @ params["kernel"] - jnp.mean(frames, axis=(1, 2, 3))) ** 2), {}

    def evaluate(self, params, frozen, batch, key):
        frames = batch["frames"].astype(jnp.float32)
        return {"loss": self.loss(params, frozen, batch, key)[0], "sum": frames.sum((0, 1, 2, 3))}

    def flops(self, batch):
        return 1.0

    def save(self, folder, params, scores):
        folder.mkdir(exist_ok=True)
        # Work of the first host alone, which must not wait for the devices of the others.
        check = jax.jit(lambda x: x.sum())(params["kernel"])
        np.savez(folder / "model.npz", kernel=params["kernel"], check=check, sum=scores["sum"])


def make_task(config, workdir, split):
    return Colour(), make_data(config, split, spatial=8, temporal=4)


if __name__ == "__main__":
    train.setup.TASKS["colour"] = make_task
    loop.measure_peak = lambda: 1e9  # takes seconds where processes share a core
    train.command.run(train.main)
