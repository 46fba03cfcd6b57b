"""What sampling costs beyond the network's own calls: python -m benchmarks.sampler [repeats]

From a prompt to latents, against as many calls of the compiled network on the same batch, and one
of its reader of text:
the model that ships at its own size, and the transformer of `benchmarks.dit` with 2,048 tokens.
"""

import dataclasses
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import sora_jax
from benchmarks import dit
from benchmarks.timing import once
from sora_jax.host_memory import keep_freed_memory
from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text_reader import TextReader
from sora_jax.pipeline import Model

STEPS = 10  # of Euler: as many calls of the network, each for the prompt and the empty one


def large(model: Model, config: DiTConfig = dit.CONFIG) -> Model:
    """The model with another transformer in its place, freshly drawn."""
    config = dataclasses.replace(config, text_width=model.text_config.width)
    params = nn.meta.unbox(init_dit(config, jax.random.key(0)))
    params = {**model.params, "dit": jax.tree.map(lambda x: x + 0.01, params)}
    vae = dataclasses.replace(model.vae_config, latent_channels=config.latent_channels)
    return dataclasses.replace(model, dit_config=config, vae_config=vae, params=params)


def make_rows(
    model: Model, size: tuple[int, int], frames: int, steps: int = STEPS
) -> tuple[Callable, Callable]:
    """Calls that sample latents, and that run the network as often."""
    network = jax.jit(
        lambda params, *inputs: DiT(model.dit_config).apply({"params": params}, *inputs)
    )
    params = model.params["dit"]
    text = model.read(["a red circle moves right"])
    reader = jax.jit(TextReader(model.dit_config).apply)
    shape = model.latent_shape(size, frames)
    x, t = jnp.ones((2, *shape)), jnp.full((2, shape[0]), 0.5)

    def sample() -> jax.Array:
        return model.sample_latents(
            "a red circle moves right", size=size, frames=frames, steps=steps, solver="euler"
        )

    def calls() -> list[jax.Array]:
        read = reader({"params": params["text_reader"]}, text)
        return [network(params, x, t, read) for _ in range(steps)]

    return sample, calls


def main(repeats: int) -> None:
    model = sora_jax.load()
    frames, height, width, _ = dit.SHAPE
    stride = model.vae_config.spatial_stride
    for name, rows in {
        "shipped model": make_rows(model, model.settings.size, model.settings.frames),
        "2,048 tokens": make_rows(
            large(model), (width * stride, height * stride), 1 + 4 * (frames - 1)
        ),
    }.items():
        for call in rows:
            once(call)
        taken = np.array([[once(call) for call in rows] for _ in range(repeats)])
        sampling, network = np.median(taken, axis=0)
        over = 100 * (np.median(taken[:, 0] / taken[:, 1]) - 1)
        least = 100 * (np.divide(*taken.min(axis=0)) - 1)
        print(f"{name}: {sampling:.3f} s, of which {STEPS} calls of the network {network:.3f} s")
        print(f"{name}: overhead {over:.2f} %, by the lowest times {least:.2f} %")


if __name__ == "__main__":
    keep_freed_memory()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
