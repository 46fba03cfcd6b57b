"""This side of `benchmarks.against_diffusers`, in a process of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sora_jax
from benchmarks import dit, sampler, text, vae
from benchmarks.against_diffusers import SMALL, Sizes
from benchmarks.turns import MATMUL, serve
from sora_jax.host_memory import keep_freed_memory


def make_calls(row: str, small: bool) -> dict[str, Callable[[], Any]]:
    """Calls of one row on this side, by name."""
    sizes = SMALL if small else Sizes()
    square = jnp.ones((sizes.matmul, sizes.matmul))
    multiply = jax.jit(jnp.matmul)
    kind, *rest = row.split()
    if kind == "dit":
        made = dit.make_rows(*rest, sizes.transformer, sizes.latents, sizes.words)
    elif kind == "vae":
        made = vae.make_rows(rest[0], int(rest[1]) // sizes.narrower, sizes.frames, sizes.side)
    elif kind == "text":
        made = text.make_rows(sizes.encoder, words=sizes.text_words)
    else:
        model = sampler.large(sora_jax.load(), sizes.transformer)
        frames, height, width, _ = sizes.latents
        stride = model.vae_config.spatial_stride
        size = (width * stride, height * stride)
        made = sampler.make_rows(model, size, 1 + 4 * (frames - 1), sizes.steps)
        calls = dict(zip(("work", "bare"), made))
    if kind != "sampling":
        ((call, _),) = made.values()
        calls = {"work": call}
    calls[MATMUL] = lambda: [multiply(square, square) for _ in range(3)]
    return {name: lambda call=call: jax.block_until_ready(call()) for name, call in calls.items()}


if __name__ == "__main__":
    keep_freed_memory()
    serve(make_calls)
