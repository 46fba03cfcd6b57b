"""How a run reads captions: its tokenizer, and its text encoder, trained along or frozen."""

import functools
from typing import Any

from ml_collections import ConfigDict

from sora_jax.data.identity import check_text, has_text
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.language.tokenizer import train as train_tokenizer
from sora_jax.models.text import TextConfig
from sora_jax.training.clips import make_source, read_buckets
from sora_jax.training.frozen import TextParts, load_text_encoder
from sora_jax.training.remote import Folder
from sora_jax.training.resume import keep_tokenizer
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.settings import from_settings


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


def make_text(config: ConfigDict, workdir: Folder) -> TextParts:
    """The text encoder that a run of the transformer names, or one to train with it."""
    if config.text_encoder:
        return load_text_encoder(config.text_encoder)
    if config.init:
        make = functools.partial(Tokenizer.from_file, find_model(config.init) / "tokenizer.json")
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
