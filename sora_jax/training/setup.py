"""From a run's config to its task and clips. What is wrong stops the run before step 0."""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sora_jax.data.identity import check_vae, text_identity, vae_identity
from sora_jax.diffusion.conditioning import check_weights
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.lora import LoRAConfig, init_lora
from sora_jax.models.remat import REMAT
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.captions import make_text, text_reading
from sora_jax.training.clips import Data, make_data, option, read_buckets
from sora_jax.training.dit_task import Adapters, DiTTask
from sora_jax.training.expert import kept_parts, trained_part
from sora_jax.training.images import image_reading, make_images
from sora_jax.training.inherit import inherit
from sora_jax.training.levels import NoiseConfig
from sora_jax.training.loop import LoopConfig
from sora_jax.training.placement import BatchSplit
from sora_jax.training.remote import Folder, is_remote, remote_folder
from sora_jax.training.resume import keep_adapters, keep_expert, keep_text_encoder, keep_vae
from sora_jax.training.sampling import sampling_settings
from sora_jax.training.start import base_of_dit, start_of_dit, start_of_vae
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.lora_folder import transformer_sha256
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import load_vae
from sora_jax.weights.settings import from_settings

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make_vae_task(
    config: ConfigDict, workdir: Folder, split: BatchSplit
) -> tuple[VAETask | AdversarialTask, Data]:
    """The VAE, with a discriminator beside it if its loss has a weight, and its clips.

    With `config.keep_encoder` the decoder alone is trained.
    """
    settings = from_settings(VAEConfig, config.vae)
    for bucket in read_buckets(config.data):
        settings.latent_shape(bucket.frames, bucket.height, bucket.width)
    begin = start_of_vae(config.init, settings)
    if config.keep_encoder:
        if begin is None:
            raise ValueError(
                "config.keep_encoder=True trains a decoder for latents that are as they were: give "
                "the model folder of their VAE as config.init"
            )
        keep_vae(workdir, find_model(config.init), "init")
    data = make_data(
        config, split, spatial=settings.spatial_stride, temporal=settings.temporal_stride
    )
    seen = {tuple(batch["frames"].shape): batch for batch in data.held_out}
    task = VAETask(
        settings,
        option(config, "dtype", DTYPES),
        kl_weight=config.loss.kl,
        gradient_weight=config.loss.gradient,
        change_weight=config.loss.change,
        fps=data.fps,
        show=list(seen.values()),
        begin=begin,
        keep_encoder=config.keep_encoder,
    )
    if config.loss.adversarial:
        task = AdversarialTask(task, config.loss.adversarial)
    return task, data


def make_dit_task(config: ConfigDict, workdir: Folder, split: BatchSplit) -> tuple[DiTTask, Data]:
    """The transformer, its text encoder and its clips or latents; `workdir` is the run's.

    With `config.lora.rank` adapters for it are trained instead.
    """
    config = inherit(config)
    option(config, "remat", REMAT)
    check_weights(dict(config.patterns))
    buckets = read_buckets(config.data)
    part = trained_part(config)
    vae = load_vae(config.vae)
    longest = max(vae.config.latent_shape(b.frames, b.height, b.width)[0] for b in buckets)
    if config.window and not 1 < config.window < longest:
        raise ValueError(
            f"config.window={config.window} must be at least 2 latent frames and less than those "
            f"of the longest bucket, {longest}; 0 takes every clip whole"
        )
    keep_vae(workdir, config.vae, "vae")
    if config.expert:
        keep_expert(workdir, config.expert)
    if config.data.latents:
        check_vae(config.data.latents, config.vae)
    text = make_text(config, workdir)
    if config.text_encoder:
        keep_text_encoder(workdir, config.text_encoder, config.tokenizer.length)
    dit = from_settings(
        DiTConfig,
        {
            **config.dit,
            "latent_channels": vae.config.latent_channels,
            "text_width": text.config.width,
        },
    )
    if dit.patch[0] > 1:
        raise ValueError(
            f"config.dit.patch={dit.patch} joins {dit.patch[0]} latent frames, and training has a "
            "noise level for each: make its first number 1"
        )
    trained_text = text.config if text.params is None else None
    image, image_params = make_images(config, dit, buckets)
    adapters = None
    if config.lora.rank:
        adapters = make_adapters(config, dit, part, trained_text, workdir)
    start = None if adapters else start_of_dit(config.init, dit, trained_text, part)
    noise = from_settings(NoiseConfig, config.noise)
    reading = text_reading(config, text.tokenizer) | image_reading(config, dit, image)
    data = make_data(
        config,
        split,
        spatial=vae.config.spatial_stride * dit.patch[1],
        temporal=vae.config.temporal_stride,
        **reading,
    )
    settings = sampling_settings(config, data.fps, noise, vae.config, text.tokenizer)
    # What has done its work before takes no memory of the devices.
    frozen, precomputed = {}, {}
    encoder = {"vae": vae.params, "latent_mean": vae.mean, "latent_std": vae.std}
    (precomputed if config.data.latents else frozen).update(encoder)
    if text.params is not None:
        (precomputed if "text_length" in reading else frozen)["text"] = text.params
    if image_params is not None:
        frozen["image"] = image_params
    if adapters:
        frozen["dit"] = base_of_dit(config.init, dit, part)
    task = DiTTask(
        dit,
        text.config,
        vae.config,
        option(config, "dtype", DTYPES),
        noise,
        dict(config.patterns),
        frozen,
        remat=config.remat,
        window=config.window,
        tokenizer=text.tokenizer,
        settings=dataclasses.asdict(settings),
        start=start,
        precomputed=precomputed,
        adapters=adapters,
        part=part,
        kept=kept_parts(config, part, dit, image),
        image_config=image,
    )
    for bucket in buckets:
        task.level_shares(vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)[:3])
    return task, data


def make_adapters(
    config: ConfigDict,
    dit: DiTConfig,
    part: str,
    trained_text: TextConfig | None,
    workdir: Folder,
) -> Adapters:
    """What a LoRA run trains.

    Raises:
      FileNotFoundError, ValueError: sizes that cannot be, no model to train them for, a text
        encoder that would have to be trained too, a VAE or a text encoder of another model, or not
        those that the run began with.
    """
    lora = from_settings(LoRAConfig, config.lora)
    if not config.init or trained_text is not None:
        what, name = ("model", "init") if not config.init else ("text encoder", "text_encoder")
        raise ValueError(
            f"config.lora.rank={lora.rank} trains adapters for a {what} that stays as it is: give "
            f"its model folder as config.{name}, or set config.lora.rank=0"
        )
    jax.eval_shape(lambda key: init_lora(dit, lora, key), jax.random.key(0))  # raises
    base = find_model(config.init)
    _check_companions(config, base)
    adapters = Adapters(lora, base, transformer_sha256(base, part))
    keep_adapters(workdir, config.init, adapters)
    return adapters


def _check_companions(config: ConfigDict, base: pathlib.Path) -> None:
    """Raises ValueError unless a LoRA run trains with the VAE and the text encoder of its model.

    What it writes names that model alone, and is sampled with all of its parts.
    """
    identities = {
        "vae": vae_identity,
        "text_encoder": functools.partial(text_identity, length=config.tokenizer.length),
    }
    for name, identity in identities.items():
        if pathlib.Path(config[name]).resolve() == base.resolve():
            continue
        if identity(config[name]) != identity(base):
            raise ValueError(
                f"config.{name}={config[name]} is another than that of config.init={config.init}, "
                "with which adapters are sampled; give the same folder for both"
            )


# By config.task: (config, workdir, split) -> the task and its clips.
TASKS = {"vae": make_vae_task, "dit": make_dit_task}


def make_loop_config(config: ConfigDict) -> LoopConfig:
    """The loop's own settings, with the run's seed."""
    return from_settings(LoopConfig, {"seed": config.seed, **config.loop})


def keep_programs(workdir: Folder) -> None:
    """Lets jax keep compiled programs in a work folder, and take them from there."""
    folder = workdir / "compiled"
    folder = str(folder) if is_remote(folder) else os.path.abspath(folder)
    jax.config.update("jax_compilation_cache_dir", folder)


def workdir_path(path: str) -> Folder:
    """The work folder, made if missing.

    Raises:
      ValueError: there is a file of that name, no permission, or a bucket that cannot be used.
    """
    if is_remote(path):
        return remote_folder(path)
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={path} cannot be made ({error}); choose another") from error
    return folder
