"""The compiled programs of sampling: sizes and the number of steps are fixed, the rest is data."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import clean_from_velocity, expand, told_levels
from sora_jax.diffusion.guidance import Scales, Told, guide, is_inside, restore_spread
from sora_jax.diffusion.ring import over_windows
from sora_jax.diffusion.solvers import Last, Step, limit_range, solve
from sora_jax.models.dit import DiT
from sora_jax.models.dit_blocks import Text
from sora_jax.models.dit_config import DiTConfig, flops
from sora_jax.models.image import ImageConfig, image_tokens
from sora_jax.models.image_latents import encode_images, with_mask
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.text_reader import TextReader
from sora_jax.models.vae import VAEConfig
from sora_jax.models.vae_clips import decode_clip, decode_piece, encode_clip

# Bytes of one block's activations up to which all that guidance asks goes through the network as
# one batch. Beyond it memory counts more, and batches are large enough to be fast one by one.
_AT_ONCE = 2**28
# Floating-point operations of one forward pass from which each step is a program of its own. On two
# cores of a CPU it takes some seconds, on a TPU still longer than to start the next one.
_SLOW = 5e11

encode = jax.jit(encode_clip, static_argnums=0)
decode = jax.jit(decode_piece, static_argnums=0)
decode_all = jax.jit(decode_clip, static_argnums=0)


@functools.partial(jax.jit, static_argnames="config")
def read(params: Any, tokens: jax.Array, *, config: TextConfig) -> jax.Array:
    """Text features [B, L, D] of tokens [B, L], in the dtype of `compute_dtype`."""
    return TextEncoder(config, compute_dtype(params)).apply({"params": params}, tokens)


def compute_dtype(params: Any) -> jnp.dtype:
    """What a text encoder or transformer computes in: bfloat16 if some of it is held so.

    Those in int8 have the rest in bfloat16. float16 cannot hold all activations, and is computed
    with in float32.
    """
    held = any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    return jnp.bfloat16 if held else jnp.float32


@functools.partial(jax.jit, static_argnames="config")
def look(params: Any, pixels: jax.Array, *, config: ImageConfig) -> jax.Array:
    """Image tokens [1, n M, D] of pixels [n, side, side, 3], see `models.image_pixels.prepare`."""
    return image_tokens(config, params, pixels[None])


@functools.partial(jax.jit, static_argnames=("config", "at", "frames"))
def lay_images(
    params: Any,
    images: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    *,
    config: VAEConfig,
    at: tuple[int, ...],
    frames: int,
) -> jax.Array:
    """What a transformer sees beside the noise of images in a clip: [1, T, h, w, mask + C].

    Args:
      params: of the VAE.
      images: uint8 [n, H, W, 3].
      mean, std: [C], of latents.
      config: sizes of the VAE.
      at: frames where the images are.
      frames: of the clip.
    """
    where = {"at": at, "frames": frames}
    return with_mask(encode_images(config, params, images[None], mean, std, **where), **where)


class Seen(NamedTuple):
    """What a transformer sees of images besides the noise.

    Attributes:
      channels: [1, T, h, w, image_channels], the same for all clips of a batch.
      tokens: [1, M, image_width]; None if it reads none.
    """

    channels: jax.Array
    tokens: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Program:
    """What `generate` is compiled for, besides the shapes of its arrays.

    Attributes:
      dit: sizes of the transformer.
      step: one step of the solver.
      limit: of clean predictions, standard deviations; None for no limit.
      told: what the network is asked with, see `diffusion.guidance.tellings`.
      interval: whether guidance acts on a part of the path only.
      rescale: whether guided predictions are rescaled.
      ring: 0, or time is a ring that the network sees in windows of so many latent frames.
      level_grid: how many levels the network is told, rounded down; None for all.
    """

    dit: DiTConfig
    step: Step
    limit: float | None
    told: tuple[Told, ...]
    interval: bool = False
    rescale: bool = False
    ring: int = 0
    level_grid: int | None = None


@functools.partial(jax.jit, static_argnames="program")
def generate(
    params: Any,
    text: jax.Array,
    x: jax.Array,
    levels: jax.Array,
    known: jax.Array | None,
    ceilings: jax.Array | None,
    hidden: jax.Array | None,
    scales: Scales,
    seen: Seen | None = None,
    last: Last | None = None,
    done: jax.Array | int = 0,
    *,
    program: Program,
) -> tuple[jax.Array, Last]:
    """Takes noisy latents from the first to the last of the levels.

    Args:
      params: of the transformer.
      text: features [2 B, L, D], of the prompts and then as many of what is guided away from.
      x: [B, T, h, w, C] at the first levels.
      levels, known, ceilings: see `diffusion.solvers.solve`.
      hidden: noise shaped like x, which the network sees in place of the frames that are given
        when it is not told of them; None if it always is.
      scales: of guidance.
      seen: of images, in a model with image channels.
      last, done: see `diffusion.solvers.solve`, as is what comes back.
      program: what to compile.
    """
    batch, told, dtype = x.shape[0], program.told, compute_dtype(params)
    tokens = None if seen is None else seen.tokens
    if tokens is not None:
        tokens = jnp.broadcast_to(tokens, (len(text), *tokens.shape[1:]))
    text = TextReader(program.dit, dtype).apply({"params": params["text_reader"]}, text, tokens)
    prompted = jax.tree.map(lambda v: v[:, :batch], text)
    negative = jax.tree.map(lambda v: v[:, batch:], text)
    texts = [prompted if one.prompt else negative for one in told]
    together = _fit_together(program, len(told), x)
    texts = jax.tree.map(lambda *v: jnp.concatenate(v, 1) if together else jnp.stack(v), *texts)

    def network(x: jax.Array, t: jax.Array, text: Text) -> jax.Array:
        level = told_levels(t, program.level_grid)
        inputs = x
        if seen is not None:
            beside = jnp.broadcast_to(seen.channels, (len(x), *seen.channels.shape[1:]))
            inputs = jnp.concatenate([x, beside], axis=-1)
        y = DiT(program.dit, dtype).apply({"params": params}, inputs, level, text)
        return clean_from_velocity(x, y, t) if program.dit.prediction == "velocity" else y

    if program.ring:
        network = over_windows(network, program.ring, together=together)

    def without_guidance(x: jax.Array, t: jax.Array) -> jax.Array:
        return network(x, t, prompted)

    def with_guidance(x: jax.Array, t: jax.Array) -> jax.Array:
        shown = [(x, t) if one.frames else _hide(x, t, ceilings, hidden) for one in told]
        xs, ts = (jnp.stack(every) for every in zip(*shown))
        if together:
            flat = (v.reshape(-1, *v.shape[2:]) for v in (xs, ts))
            every = network(*flat, texts).reshape(xs.shape)
        else:
            every = jax.lax.map(lambda inputs: network(*inputs), (xs, ts, texts))
        y = guide(every, told, t, scales)
        return restore_spread(y, every[-1], t, scales) if program.rescale else y

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, x.shape[:2])
        if len(told) == 1:
            y = without_guidance(x, t)
        elif program.interval:
            acts = jnp.any(is_inside(t, scales))
            y = jax.lax.cond(acts, with_guidance, without_guidance, x, t)
        else:
            y = with_guidance(x, t)
        return limit_range(y, program.limit)

    return solve(
        denoise,
        x,
        levels,
        step=program.step,
        known=known,
        ceilings=ceilings,
        circular=program.ring > 0,
        last=last,
        done=done,
    )


def is_slow(dit: DiTConfig, x: jax.Array, words: int) -> bool:
    """Whether a step is so much work that people want to see how far it is."""
    tokens = math.prod(dit.grid(x.shape[1:4]))
    return x.shape[0] * flops(dit, tokens, words, x.shape[1]) > _SLOW


def _hide(
    x: jax.Array, t: jax.Array, ceilings: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Noisy latents and their levels with pure noise for the frames that are given."""
    held = ceilings <= 0
    return jnp.where(expand(held, x), hidden, x), jnp.where(held, 1.0, t)


def _fit_together(program: Program, count: int, x: jax.Array) -> bool:
    """Whether the network is asked everything at once, or one thing after the other."""
    tokens = math.prod(program.dit.grid(x.shape[1:4]))
    a_token = 4 * (program.dit.mlp_width + 8 * program.dit.width)
    seen = 2 if program.ring else 1  # windows overlap by half
    return count * x.shape[0] * seen * tokens * a_token <= _AT_ONCE
