"""From a folder to a model: its files, its settings, and adapters for it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.settings import ModelSettings, read_settings
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.pipeline import Model
from sora_jax.weights.fit import check_adapted, check_vocabulary
from sora_jax.weights.hub import fetch
from sora_jax.weights.in_turn import InTurn
from sora_jax.weights.lora import check_lora, merge_lora
from sora_jax.weights.lora_folder import take_adapters
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import open_parts
from sora_jax.weights.tensor_files import as_dtype
from sora_jax.weights.wan_settings import OWN_SETTINGS

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"


def load(
    source: str | pathlib.Path | None = None,
    *,
    dtype: str = "float32",
    lora: str | pathlib.Path | None = None,
    lora_low: str | pathlib.Path | None = None,
    in_turn: bool = False,
) -> Model:
    """The model of a folder or of the Hugging Face Hub; the shipped one if None.

    Args:
      source: a model folder, the work folder of a training run, a folder of an open Wan model (see
        docs/open_weights.md), or OWNER/NAME@COMMIT of one on the Hub.
      dtype: of the parameters in memory, "float32", "bfloat16", "float16", or "stored" for that of
        the files; or "int8", for the matrices of the blocks, with bfloat16 for the rest. The text
        encoder and the transformer compute in bfloat16 where they are held so, or in int8, and
        else in float32; the VAE, latents and the solver in float32 always.
      lora: a file of adapters, or a folder that has one, which are added to the transformer, see
        docs/finetuning.md; of two transformers, to that for high noise. The work folder of a LoRA
        run as `source` has its own.
      lora_low: the same for the second of two transformers, for low noise.
      in_turn: whether the text encoder, the transformer and the VAE are read only when they are
        needed, and only one of them is in memory at a time.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration. With `in_turn`
        damage to numbers shows later, when they are read.
    """
    kept = as_dtype(dtype)
    folder = find_model(PRETRAINED if source is None else fetch(source))
    folder, adapters, adapted = take_adapters(folder, lora, lora_low)
    parts = open_parts(folder, kept)
    check_adapted(folder, parts.configs, adapters)
    for part, file in adapters.items():
        check_lora(file, parts.configs[part])
        if kept == np.int8:
            raise ValueError(
                f"the adapters of {file} cannot be added to parameters in int8; write a model with "
                "them first: sora_jax.weights export --lora, of an open model after import"
            )
    described = (folder if adapted is None else adapted.file.parent) / "model.json"
    described = described if described.is_file() else folder / OWN_SETTINGS
    settings = parts.settings if adapted is None else adapted.settings
    # Before parameters are read, which may take minutes.
    tokenizer, settings = open_words(folder, parts.tokenizer, settings, described, parts.configs)

    def read(part: str) -> Any:
        if part not in adapters:
            return parts.load(part, jax.device_put)
        params = parts.load(part, lambda x: x)
        merge_lora(params, adapters[part], parts.configs[part])
        return jax.device_put(params)

    if in_turn:
        params = InTurn(parts.configs, read)
    else:
        params = {part: read(part) for part in parts.configs}
    return Model(
        vae_config=parts.configs["vae"],
        dit_config=parts.configs["dit"],
        text_config=parts.configs["text"],
        params=params,
        latent_mean=jnp.asarray(parts.mean),
        latent_std=jnp.asarray(parts.std),
        tokenizer=tokenizer,
        settings=settings,
        image_config=parts.configs.get("image"),
    )


def open_words(
    folder: pathlib.Path,
    file: pathlib.Path,
    settings: dict[str, Any],
    described: pathlib.Path,
    configs: dict[str, Any],
) -> tuple[Tokenizer, ModelSettings]:
    """The tokenizer of a model and its settings, checked against its networks.

    Args:
      folder: of the model, to be named.
      file: its tokenizer.json.
      settings: of the model, as JSON has them.
      described: file that they are of, to be named.
      configs: sizes of the networks, see `weights.parts.Parts`.

    Raises:
      FileNotFoundError, ValueError: no tokenizer, more words than the text encoder knows, or
        settings that make no sense or that the model cannot serve.
    """
    tokenizer = Tokenizer.from_file(file)
    check_vocabulary(folder, tokenizer.vocabulary, configs["text"])
    shape = configs["vae"].latent_shape
    return tokenizer, read_settings(settings, described, shape, tokenizer.check_length)
