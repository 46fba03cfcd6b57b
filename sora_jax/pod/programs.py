"""The programs that a run compiles, traced for a mesh without data, weights or devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sora_jax.diffusion.guidance import Scales, tellings
from sora_jax.diffusion.solvers import euler_step
from sora_jax.generation import Program, generate
from sora_jax.models.dit import flops, init_dit
from sora_jax.models.vae import encode_frames, init_vae
from sora_jax.pod.sizes import Sizes
from sora_jax.sharding import batch_sharding, tree_shardings
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.dit_task import DiTTask, NoiseConfig
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.state import abstract_state, jit_train_step
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.parts import init_text
from sora_jax.weights.settings import from_settings


class Work(NamedTuple):
    """A program that is not compiled yet.

    Attributes:
      step: jitted.
      arguments: of the step, arrays as ShapeDtypeStructs with their shardings.
      kinds: the same arrays, by what they are.
      flops: by arithmetic, of all chips together: three forward passes in training.
    """

    step: Any
    arguments: tuple
    kinds: dict[str, Any]
    flops: float


def make_task(config: ConfigDict, sizes: Sizes) -> Any:
    """The task of a training run; no parameters are used that it does not train."""
    if config.task == "vae":
        loss = config.loss
        task = VAETask(sizes.vae, sizes.dtype, loss.kl, loss.gradient, config.data.fps)
        return AdversarialTask(task, loss.adversarial) if loss.adversarial else task
    # With latents and text features computed before, nothing else is on the devices.
    precomputed = {"text": _shapes(init_text, sizes.text)} if sizes.frozen_text else {}
    return DiTTask(
        sizes.dit,
        sizes.text,
        sizes.vae,
        sizes.dtype,
        from_settings(NoiseConfig, config.noise),
        dict(config.patterns),
        frozen={},
        remat=config.remat,
        window=config.window,
        tokenizer=None,
        settings={},
        precomputed=precomputed,
    )


def train_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """The train step on precomputed latents, with the state donated as the loop does it.

    Raises:
      ValueError: a dimension that its mesh axes do not divide.
    """
    task = make_task(config, sizes)
    tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
    state = abstract_state(task.init, tx, mesh)
    batch = _batch(sizes, mesh, clips)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    settings = {"ema_decay": config.loop.ema_decay, "accumulate": config.loop.accumulate}
    step = jit_train_step(task, tx, mesh, shardings, **settings)
    kinds = {
        "parameters": state.params,
        "EMA": state.ema,
        "optimizer": (state.opt_state, state.step, state.bad_steps, state.skipped),
        "batch": batch,
    }
    return Work(step, (state, task.frozen, batch, _key()), kinds, task.flops(batch))


def sample_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """One step of an Euler sampler guided by the prompt: two calls of the transformer."""
    told = tellings(text=True, given=False)
    program = Program(sizes.dit, euler_step, config.sampling.latent_limit, told)
    boxed = jax.eval_shape(lambda key: init_dit(sizes.dit, key), _key())
    params = _placed(nn.meta.unbox(boxed), tree_shardings(boxed, mesh))
    everywhere = NamedSharding(mesh, PartitionSpec())
    text = jax.ShapeDtypeStruct(
        (2 * clips, sizes.words, sizes.text.width), jnp.float32, sharding=everywhere
    )
    x = jax.ShapeDtypeStruct((clips, *sizes.latents), jnp.float32, sharding=batch_sharding(mesh, 5))
    levels = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=everywhere)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    scales = Scales(*(number for _ in Scales._fields))
    step = jax.jit(lambda *arguments: generate.__wrapped__(*arguments, program=program)[0])
    arguments = (params, text, x, levels, None, None, None, scales)
    count = len(told) * clips * flops(sizes.dit, sizes.tokens, sizes.words, sizes.latents[0])
    return Work(step, arguments, {"parameters": params, "batch": (text, x)}, count)


def vae_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """Frames to latents, as precomputing them does."""
    params = _everywhere(_shapes(init_vae, sizes.vae), mesh)
    frames = _frames(sizes, mesh, clips)
    channels = jax.ShapeDtypeStruct((sizes.vae.latent_channels,), jnp.float32)
    channels = _everywhere(channels, mesh)
    step = jax.jit(functools.partial(encode_frames, sizes.vae, dtype=sizes.dtype))
    arguments = (params, frames, channels, channels)
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    count = step.lower(*plain).cost_analysis()["flops"]
    return Work(step, arguments, {"parameters": params, "batch": frames}, count)


WORKS: dict[str, Callable[[ConfigDict, Sizes, Mesh, int], Work]] = {
    "train": train_work,
    "sample": sample_work,
    "vae": vae_work,
}


def _batch(sizes: Sizes, mesh: Mesh, clips: int) -> dict[str, Any]:
    """What the loader gives: latents and what goes with them, or frames for a VAE."""
    if sizes.dit is None:
        return {"frames": _frames(sizes, mesh, clips)}
    shape = (clips, *sizes.latents)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh, 5))
    if sizes.frozen_text:
        shape = (clips, sizes.words, sizes.text.width)
        text = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=batch_sharding(mesh, 3))
        return {"latents": latents, "text": text}
    shape = (clips, sizes.words)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh, 2))
    return {"latents": latents, "tokens": tokens}


def _frames(sizes: Sizes, mesh: Mesh, clips: int) -> jax.ShapeDtypeStruct:
    bucket = sizes.bucket
    shape = (clips, bucket.frames, bucket.height, bucket.width, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh, 5))


def _shapes(init: Callable[[Any, jax.Array], Any], config: Any) -> Any:
    return nn.meta.unbox(jax.eval_shape(lambda key: init(config, key), _key()))


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)
