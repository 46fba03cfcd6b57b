"""From a run's config to its parts: clips and task. What is wrong stops the run before step 0."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sora_jax.buckets import Bucket, batch_size
from sora_jax.data.folder import ClipDataset
from sora_jax.data.identity import check_text, check_vae, has_text
from sora_jax.data.latents import LatentDataset
from sora_jax.data.loader import Loader, make_loader
from sora_jax.data.source import ClipSource
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.language.tokenizer import train as train_tokenizer
from sora_jax.models.dit import REMAT, DiTConfig
from sora_jax.models.sizes import is_counts
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.dit_task import DiTTask, NoiseConfig
from sora_jax.training.frozen import TextParts, load_text_encoder
from sora_jax.training.loop import LoopConfig
from sora_jax.training.resume import keep_tokenizer, keep_vae
from sora_jax.training.sampling import sampling_settings
from sora_jax.training.start import start_of_dit, start_of_vae
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.parts import load_vae
from sora_jax.weights.settings import as_tuple, from_settings

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def option(config: ConfigDict, name: str, options: Mapping[str, Any]) -> Any:
    """The option that a setting of the config names.

    Raises:
      ValueError: it names none of them.
    """
    if config[name] not in options:
        raise ValueError(
            f"config.{name}={config[name]!r} is unknown; it is one of {sorted(options)}"
        )
    return options[config[name]]


def read_buckets(data: ConfigDict) -> list[Bucket]:
    """The buckets of `data`.

    Raises:
      ValueError: there is none, or one is not three numbers of at least 1.
    """
    shapes = as_tuple(data.buckets)
    if not isinstance(shapes, tuple) or not shapes:
        raise ValueError(
            f"config.data.buckets={shapes} must be a tuple of buckets, such as ((17, 64, 96),)"
        )
    for shape in shapes:
        if not is_counts(shape) or len(shape) != 3:
            raise ValueError(
                f"config.data.buckets has {shape}, which is no bucket: give frames, height and "
                "width, three whole numbers of at least 1, such as ((17, 64, 96),)"
            )
    return [Bucket(*shape) for shape in shapes]


def make_source(
    data: ConfigDict,
    buckets: Sequence[Bucket],
    *,
    held_out: bool,
    text_length: int | None = None,
) -> ClipSource:
    """The clips of `data`: those of a dataset folder, or of the rendered world if it has none.

    Args:
      data: of a run's config.
      buckets: shapes that the rendered world has.
      held_out: the clips that training never draws.
      text_length: tokens of the text features to read beside latents; None for none.
    """
    split = "validation" if held_out else "train"
    if data.get("latents"):
        latents = LatentDataset(data.latents, split, text_length=text_length)
        latents.check_buckets(buckets)
        return latents
    if data.folder:
        return ClipDataset(data.folder, split, fps=data.fps)
    length = 64 * len(buckets) if held_out else data.clips
    weights = data.bucket_weights or None
    return Shapes(length, buckets, weights, seed=1 if held_out else 0)


@dataclasses.dataclass
class Data:
    """What a run reads: its batches, held-out batches, the rate of its clips."""

    loader: Loader
    held_out: list[dict[str, np.ndarray]]
    fps: float


def make_data(
    config: ConfigDict,
    *,
    spatial: int,
    temporal: int,
    tokenize: Any = None,
    text_length: int | None = None,
) -> Data:
    """Loaders of this host, and a fixed set of held-out batches in memory.

    Args:
      config: of the run.
      spatial, temporal: pixels of a side and frames that make one token.
      tokenize: caption to tokens, or None.
      text_length: see `make_source`.

    Raises:
      ValueError, OSError: there is nothing to hold out, or no clip for the buckets.
    """
    data = config.data
    if data.held_out_batches < 1:
        raise ValueError(
            f"config.data.held_out_batches={data.held_out_batches}: a model is written with its "
            "scores; use at least 1"
        )
    buckets = read_buckets(data)
    devices = jax.device_count()

    def size(bucket: Bucket) -> int:
        return batch_size(
            bucket,
            token_budget=data.token_budget,
            most_clips=data.most_clips,
            multiple_of=devices,
            spatial=spatial,
            temporal=temporal,
        )

    common = {
        "batch_size": size,
        "tokenize": tokenize,
        "caption_weights": dict(data.caption_weights),
        "host_index": jax.process_index(),
        "host_count": jax.process_count(),
        "workers": data.workers,
    }
    source = make_source(data, buckets, held_out=False, text_length=text_length)
    loader = make_loader(
        source, buckets, seed=config.seed, caption_dropout=data.caption_dropout, **common
    )
    validation = make_loader(
        make_source(data, buckets, held_out=True, text_length=text_length),
        buckets,
        shuffle=False,
        epochs=1,
        **common,
    )
    held_out = [batch for batch, _ in zip(validation, range(data.held_out_batches))]
    validation.close()
    return Data(loader, held_out, source.fps)


def make_vae_task(config: ConfigDict) -> tuple[VAETask | AdversarialTask, Data]:
    """The VAE, with a discriminator beside it if its loss has a weight, and its clips."""
    settings = from_settings(VAEConfig, config.vae)
    for bucket in read_buckets(config.data):
        settings.latent_shape(bucket.frames, bucket.height, bucket.width)
    start = start_of_vae(config.init, settings)
    data = make_data(config, spatial=settings.spatial_stride, temporal=settings.temporal_stride)
    seen = {tuple(batch["frames"].shape): batch for batch in data.held_out}
    task = VAETask(
        settings,
        option(config, "dtype", DTYPES),
        kl_weight=config.loss.kl,
        gradient_weight=config.loss.gradient,
        fps=data.fps,
        show=list(seen.values()),
        start=start,
    )
    if config.loss.adversarial:
        task = AdversarialTask(task, config.loss.adversarial)
    return task, data


def make_tokenizer(config: ConfigDict) -> Tokenizer:
    """A tokenizer trained on captions of the run's clips.

    They are taken from all over the source: precomputed latents lie bucket by bucket, and images
    have other words than clips.
    """
    source = make_source(config.data, read_buckets(config.data), held_out=False)
    count = min(len(source), config.tokenizer.captions)
    return train_tokenizer(
        (text for i in range(count) for text in source.captions(i * len(source) // count).values()),
        config.tokenizer.vocabulary,
    )


def make_text(config: ConfigDict, workdir: pathlib.Path) -> TextParts:
    """The text encoder that a run of the transformer names, or one to train with it."""
    if config.text_encoder:
        return load_text_encoder(config.text_encoder)
    file = f"{config.init}/tokenizer.json" if config.init else config.tokenizer.file
    if file:
        make = functools.partial(Tokenizer.from_file, file)
    else:
        make = functools.partial(make_tokenizer, config)
    tokenizer = keep_tokenizer(workdir, make)
    sizes = from_settings(TextConfig, {**config.text, "vocabulary": tokenizer.vocabulary})
    return TextParts(tokenizer, sizes, None)


def text_reading(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Any]:
    """How `make_data` reads captions: as features that a frozen encoder made of them, or tokens.

    Raises:
      FileNotFoundError, ValueError: the features are of another encoder.
    """
    length, latents = config.tokenizer.length, config.data.latents
    if config.text_encoder and latents and has_text(latents):
        check_text(latents, config.text_encoder, length)
        return {"text_length": length}
    return {"tokenize": functools.partial(tokenizer.encode, length=length)}


def make_dit_task(config: ConfigDict, workdir: pathlib.Path) -> tuple[DiTTask, Data]:
    """The transformer, its text encoder and its clips or latents; `workdir` is the run's."""
    option(config, "remat", REMAT)
    buckets = read_buckets(config.data)
    vae = load_vae(config.vae)
    keep_vae(workdir, config.vae)
    if config.data.latents:
        check_vae(config.data.latents, config.vae)
    text = make_text(config, workdir)
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
    start = start_of_dit(config.init, dit, trained_text)
    for bucket in buckets:
        dit.grid(vae.config.latent_shape(bucket.frames, bucket.height, bucket.width)[:3])
    noise = from_settings(NoiseConfig, config.noise)
    data = make_data(
        config,
        spatial=vae.config.spatial_stride * dit.patch[1],
        temporal=vae.config.temporal_stride,
        **text_reading(config, text.tokenizer),
    )
    settings = sampling_settings(config, data.fps, noise, vae.config, dit, text.tokenizer)
    frozen = {"vae": vae.params, "latent_mean": vae.mean, "latent_std": vae.std}
    if text.params is not None:
        frozen["text"] = text.params
    task = DiTTask(
        dit,
        text.config,
        vae.config,
        option(config, "dtype", DTYPES),
        noise,
        dict(config.patterns),
        frozen,
        remat=config.remat,
        tokenizer=text.tokenizer,
        settings=dataclasses.asdict(settings),
        start=start,
    )
    return task, data


def make_loop_config(config: ConfigDict) -> LoopConfig:
    """The loop's own settings, with the run's seed."""
    return from_settings(LoopConfig, {"seed": config.seed, **config.loop})


def workdir_path(path: str) -> pathlib.Path:
    """The work folder, made if missing.

    Raises:
      ValueError: there is a file of that name, or no permission.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--workdir={path} cannot be made ({error}); choose another") from error
    return folder
