"""The programs that a run compiles, traced for a mesh without data, weights or devices."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sora_jax.diffusion.guidance import Scales, tellings
from sora_jax.diffusion.solvers import euler_step
from sora_jax.generation import Program, Seen, generate, read
from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import flops
from sora_jax.models.image import ImageConfig, count_tokens
from sora_jax.models.lora import LoRAConfig
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text import flops as text_flops
from sora_jax.models.text import init_text
from sora_jax.models.vae import VAE, encode_frames, init_vae
from sora_jax.models.vae_clips import decode_clip
from sora_jax.pod.sizes import Sizes
from sora_jax.sharding import batch_sharding, tree_shardings
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.dit_task import Adapters, DiTTask
from sora_jax.training.levels import NoiseConfig
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.state import abstract_state, jit_train_step
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.int8 import abstract, held_dtype
from sora_jax.weights.settings import from_settings
from sora_jax.weights.tensor_files import as_dtype


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
        task = VAETask(sizes.vae, sizes.dtype, loss.kl, loss.gradient, loss.change, config.data.fps)
        return AdversarialTask(task, loss.adversarial) if loss.adversarial else task
    # With latents and text features computed before, nothing else is on the devices.
    precomputed = {"text": _shapes(init_text, sizes.text)} if sizes.frozen_text else {}
    adapters, frozen = None, {}
    if config.lora.rank:
        adapters = Adapters(from_settings(LoRAConfig, config.lora), pathlib.Path(), "")
        frozen = {"dit": _as_stored(abstract_params(init_dit, sizes.dit))}
    return DiTTask(
        sizes.dit,
        sizes.text,
        sizes.vae,
        sizes.dtype,
        from_settings(NoiseConfig, config.noise),
        dict(config.patterns),
        frozen=frozen,
        remat=config.remat,
        window=config.window,
        tokenizer=None,
        settings={},
        precomputed=precomputed,
        adapters=adapters,
        image_config=ImageConfig() if sizes.dit.image_width else None,
    )


def _as_stored(boxed: Any) -> Any:
    """Shapes of an open model's parameters, which are published in bfloat16."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), boxed)


def train_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """The train step on precomputed latents, with the state donated as the loop does it.

    Raises:
      ValueError: a dimension that its mesh axes do not divide.
    """
    task = make_task(config, sizes)
    tx = make_optimizer(steps=config.loop.steps, **config.optimizer)
    state = abstract_state(task.init, tx, mesh)
    frozen = _placed(nn.meta.unbox(task.frozen), tree_shardings(task.frozen, mesh))
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
    if frozen:
        kinds["frozen"] = frozen
    return Work(step, (state, frozen, batch, _key()), kinds, task.flops(batch))


def sample_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """One step of an Euler sampler guided by the prompt: two calls of the transformer."""
    told = tellings(text=True, given=False)
    program = Program(sizes.dit, euler_step, config.sampling.latent_limit, told)
    params = _held("dit", init_dit, sizes.dit, sizes.held, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    text = jax.ShapeDtypeStruct(
        (2 * clips, sizes.words, sizes.text.width), jnp.float32, sharding=everywhere
    )
    x = jax.ShapeDtypeStruct((clips, *sizes.latents), jnp.float32, sharding=batch_sharding(mesh, 5))
    levels = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=everywhere)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    scales = Scales(*(number for _ in Scales._fields))
    step = jax.jit(lambda *arguments: generate.__wrapped__(*arguments, program=program)[0])
    seen, looked = _seen(sizes, everywhere)
    arguments = (params, text, x, levels, None, None, None, scales, seen)
    shape = sizes.tokens, sizes.words, sizes.latents[0], looked
    count = len(told) * clips * flops(sizes.dit, *shape)
    return Work(step, arguments, {"parameters": params, "batch": (text, x)}, count)


def _seen(sizes: Sizes, everywhere: NamedSharding) -> tuple[Seen | None, int]:
    """What the transformer sees of images, if it does, and how many tokens it reads of them."""
    dit, tokens, count = sizes.dit, None, 0
    if not dit.image_channels:
        return None, 0
    shape = (1, *sizes.latents[:3], dit.image_channels)
    channels = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
    if dit.image_width:
        count = count_tokens(dit.image_positions, ImageConfig())
        shape = (1, count, dit.image_width)
        tokens = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)
    return Seen(channels, tokens), count


def vae_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """Frames to latents, as precomputing them does."""
    params = _everywhere(_shapes(init_vae, sizes.vae), mesh)
    frames = _frames(sizes, mesh, clips)
    channels = jax.ShapeDtypeStruct((sizes.vae.latent_channels,), jnp.float32)
    channels = _everywhere(channels, mesh)
    step = jax.jit(functools.partial(encode_frames, sizes.vae, dtype=sizes.dtype))
    arguments = (params, frames, channels, channels)
    count = _counted_flops(step, arguments)
    return Work(step, arguments, {"parameters": params, "batch": frames}, count)


def text_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """Prompts, and as many empty ones, to text features."""
    params = _held("text", init_text, sizes.text, sizes.held, mesh)
    tokens = _everywhere(jax.ShapeDtypeStruct((2 * clips, sizes.words), jnp.int32), mesh)
    step = jax.jit(functools.partial(read.__wrapped__, config=sizes.text))
    count = 2 * clips * text_flops(sizes.text, sizes.words)
    return Work(step, (params, tokens), {"parameters": params, "batch": tokens}, count)


def decode_work(config: ConfigDict, sizes: Sizes, mesh: Mesh, clips: int) -> Work:
    """Latents to frames, one latent frame after the other as in sampling."""
    params = _everywhere(_shapes(init_vae, sizes.vae), mesh)
    z = jax.ShapeDtypeStruct((clips, *sizes.latents), jnp.float32, sharding=batch_sharding(mesh, 5))
    step = jax.jit(functools.partial(decode_clip, sizes.vae))
    whole = jax.jit(lambda p, z: VAE(sizes.vae).apply({"params": p}, z, method="decode")[0])
    arguments = (params, z)
    count = _counted_flops(whole, arguments)
    return Work(step, arguments, {"parameters": params, "batch": z}, count)


WORKS: dict[str, Callable[[ConfigDict, Sizes, Mesh, int], Work]] = {
    "train": train_work,
    "sample": sample_work,
    "text": text_work,
    "vae": vae_work,
    "decode": decode_work,
}


def _batch(sizes: Sizes, mesh: Mesh, clips: int) -> dict[str, Any]:
    """What the loader gives: latents and what goes with them, or frames for a VAE."""
    if sizes.dit is None:
        return {"frames": _frames(sizes, mesh, clips)}
    shape = (clips, *sizes.latents)
    latents = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_sharding(mesh, 5))
    seen = {}
    if sizes.dit.image_channels:
        seen["image_latents"] = latents.update(dtype=jnp.float16)
    if sizes.dit.image_width:
        count = count_tokens(sizes.dit.image_positions, ImageConfig())
        shape = (clips, count, sizes.dit.image_width)
        sharding = batch_sharding(mesh, 3)
        seen["image_tokens"] = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=sharding)
    if sizes.frozen_text:
        shape = (clips, sizes.words, sizes.text.width)
        text = jax.ShapeDtypeStruct(shape, jnp.float16, sharding=batch_sharding(mesh, 3))
        return {"latents": latents, "text": text, **seen}
    shape = (clips, sizes.words)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh, 2))
    return {"latents": latents, "tokens": tokens, **seen}


def _frames(sizes: Sizes, mesh: Mesh, clips: int) -> jax.ShapeDtypeStruct:
    bucket = sizes.bucket
    shape = (clips, bucket.frames, bucket.height, bucket.width, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh, 5))


def _counted_flops(step: Any, arguments: tuple) -> float:
    """Of a program of one device before compilation.

    In its form for a TPU: that for a CPU loops over large frames, and what loops is counted once.
    """
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return step.trace(*plain).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]


def _held(
    part: str, init: Callable[[Any, jax.Array], Any], config: Any, held: str, mesh: Mesh
) -> Any:
    """Parameters of a network as sampling holds them, see `sora_jax.load`, split as in training."""
    boxed = abstract_params(init, config)
    params = _placed(nn.meta.unbox(boxed), tree_shardings(boxed, mesh))

    def one(path: tuple[str, ...], x: jax.ShapeDtypeStruct) -> Any:
        dtype = held_dtype(part, "/".join(path), as_dtype(held), x.dtype)
        if dtype != np.int8:
            return x.update(dtype=dtype)
        kernel = abstract(x.shape)
        whole = NamedSharding(mesh, PartitionSpec(None, None, *x.sharding.spec[2:]))
        return _placed(kernel, kernel.replace(qvalue=x.sharding, scale=whole))

    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: one(path, x) for path, x in flat.items()})


def _shapes(init: Callable[[Any, jax.Array], Any], config: Any) -> Any:
    return nn.meta.unbox(abstract_params(init, config))


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
