"""From a folder to a model: its files, its settings, and adapters for it."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.settings import read_settings
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.pipeline import Model
from sora_jax.weights.hub import fetch
from sora_jax.weights.in_turn import InTurn
from sora_jax.weights.lora import check_lora, merge_lora
from sora_jax.weights.lora_folder import take_adapters
from sora_jax.weights.model_folder import find_model
from sora_jax.weights.parts import check_adapted, check_fit, check_vocabulary, open_parts
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
    check_adapted(folder, parts, adapters)
    for part, file in adapters.items():
        check_lora(file, parts.configs[part])
        if kept == np.int8:
            raise ValueError(
                f"the adapters of {file} cannot be added to parameters in int8; write a model with "
                "them first: sora_jax.weights export --lora, of an open model after import"
            )
    tokenizer = Tokenizer.from_file(parts.tokenizer)
    check_fit(folder, parts)
    check_vocabulary(folder, tokenizer.vocabulary, parts.configs["text"])
    settings = parts.settings if adapted is None else adapted.settings
    described = (folder if adapted is None else adapted.file.parent) / "model.json"
    described = described if described.is_file() else folder / OWN_SETTINGS
    # Before parameters are read, which may take minutes.
    settings = read_settings(
        settings, described, parts.configs["vae"].latent_shape, tokenizer.check_length
    )

    def read(part: str) -> Any:
        if part not in adapters:
            return parts.load(part, jax.device_put)
        params = parts.load(part, lambda x: x)
        merge_lora(params, adapters[part], parts.configs[part])
        return jax.device_put(params)

    return Model(
        parts.configs["vae"],
        parts.configs["dit"],
        parts.configs["text"],
        InTurn(parts.configs, read) if in_turn else {part: read(part) for part in parts.configs},
        jnp.asarray(parts.mean),
        jnp.asarray(parts.std),
        tokenizer,
        settings,
        parts.configs.get("image"),
    )
