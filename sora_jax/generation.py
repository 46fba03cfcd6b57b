"""The compiled programs of sampling: sizes and the number of steps are fixed, the rest is data."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sora_jax.diffusion.flow import clean_from_velocity
from sora_jax.diffusion.solvers import Step, guide, limit_range, solve
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.pixels import to_uint8
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.vae import VAE, VAEConfig, encode_frames

encode = jax.jit(encode_frames, static_argnums=0)


@functools.partial(jax.jit, static_argnames="config")
def decode(params: Any, z: jax.Array, carry: Any, *, config: VAEConfig) -> tuple[jax.Array, Any]:
    """Frames uint8 [B, F, H, W, 3] of latents as the VAE has them, and the carry."""
    frames, carry = VAE(config).apply({"params": params}, z, carry, method="decode")
    return to_uint8(frames), carry


@functools.partial(jax.jit, static_argnames="config")
def read(params: Any, tokens: jax.Array, *, config: TextConfig) -> jax.Array:
    """Text features [B, L, D] of tokens [B, L]."""
    return TextEncoder(config).apply({"params": params}, tokens)


@dataclasses.dataclass(frozen=True)
class Program:
    """What `generate` is compiled for, besides the shapes of its arrays.

    Attributes:
      dit: sizes of the transformer.
      step: one step of the solver.
      limit: of clean predictions, standard deviations.
      circular: see `diffusion.solvers.solve`.
    """

    dit: DiTConfig
    step: Step
    limit: float
    circular: bool = False


@functools.partial(jax.jit, static_argnames="program")
def generate(
    params: Any,
    text: jax.Array,
    x: jax.Array,
    levels: jax.Array,
    known: jax.Array | None,
    ceilings: jax.Array | None,
    guidance: jax.Array,
    *,
    program: Program,
) -> jax.Array:
    """Takes noisy latents from the first to the last of the levels.

    Args:
      params: of the transformer.
      text: features [2 B, L, D], of the prompts and then as many of the empty prompt.
      x: [B, T, h, w, C] at the first levels.
      levels, known, ceilings: see `diffusion.solvers.solve`.
      guidance: scale of classifier-free guidance.
      program: what to compile.
    """
    batch = x.shape[0]

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, x.shape[:2])
        x, t = jnp.concatenate([x, x]), jnp.concatenate([t, t])
        y = DiT(program.dit).apply({"params": params}, x, t, text)
        if program.dit.prediction == "velocity":
            y = clean_from_velocity(x, y, t)
        return limit_range(guide(y[:batch], y[batch:], guidance), program.limit)

    return solve(
        denoise,
        x,
        levels,
        step=program.step,
        known=known,
        ceilings=ceilings,
        circular=program.circular,
    )
