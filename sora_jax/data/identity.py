"""latents.json: which networks made precomputed latents, and whether a run uses the same ones."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sora_jax.digests import file_sha256

FORMAT = "sora_jax latents 1"
DESCRIPTION = "latents.json"
COMMAND = "python -m sora_jax.data.precompute --config=configs/NAME.py --output="


def vae_identity(folder: str | Path) -> dict[str, Any]:
    """What tells the VAE of a model folder from others: its parameters and how latents are scaled.

    Raises:
      FileNotFoundError, ValueError: it is no model folder with a VAE.
    """
    weights, description = _files(
        folder, ("vae.safetensors", "model.json"), "give the model folder of a trained VAE"
    )
    try:
        vae = json.loads(description.read_text(encoding="utf-8"))["parts"]["vae"]
        mean, std = list(vae["latent_mean"]), list(vae["latent_std"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description} has no latent_mean and latent_std of a VAE") from error
    return {"sha256": file_sha256(weights), "latent_mean": mean, "latent_std": std}


def text_identity(
    folder: str | Path, length: int, sha256: Callable[[Path], str] = file_sha256
) -> dict[str, Any]:
    """What tells the text features of a model folder's encoder from others.

    Args:
      folder: model folder.
      length: tokens at which captions are cut.
      sha256: of the file of weights.

    Raises:
      FileNotFoundError, ValueError: it is no model folder with a text encoder and a tokenizer.
    """
    weights, tokenizer, description = _files(
        folder,
        ("text.safetensors", "tokenizer.json", "model.json"),
        "config.text_encoder names a model folder with a text encoder and its tokenizer",
    )
    try:
        settings = dict(json.loads(description.read_text(encoding="utf-8"))["parts"]["text"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description} describes no text encoder") from error
    return {
        "sha256": sha256(weights),
        "tokenizer_sha256": file_sha256(tokenizer),
        "settings": settings,
        "length": length,
    }


def image_identity(folder: str | Path, last: bool) -> dict[str, Any]:
    """What tells what a model sees of images in a clip from what others do, besides its VAE.

    Args:
      folder: model folder.
      last: whether it sees the last frame of a clip as well as the first.

    Raises:
      FileNotFoundError, ValueError: it is no model folder, or lacks the encoder that it names.
    """
    (description,) = _files(folder, ("model.json",), "give a model folder")
    try:
        settings = json.loads(description.read_text(encoding="utf-8"))["parts"].get("image")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{description} describes no model") from error
    identity = {"last": last, "settings": settings, "sha256": None}
    if settings is not None:
        (weights,) = _files(folder, ("image.safetensors",), "the model folder is incomplete")
        identity["sha256"] = file_sha256(weights)
    return identity


def check_images(path: str | Path, folder: str | Path, last: bool) -> None:
    """Refuses latents that hold no images for a model that sees some, or other ones.

    Args:
      path: folder of the latents.
      folder, last: see `image_identity`.

    Raises:
      FileNotFoundError, ValueError: they do not belong together, or one of them is missing.
    """
    made_by, images = read_description(path).get("images"), image_identity(folder, last)
    if made_by != images:
        what = "no images" if made_by is None else "images for another model"
        raise ValueError(
            f"the latents in {path} hold {what}, and that of {folder} sees images beside the "
            f"noise: make them again with config.init={folder}: {COMMAND}..."
        )


def has_text(path: str | Path) -> bool:
    """Whether the latents in `path` have text features; raises as `read_description` does."""
    return read_description(path).get("text_encoder") is not None


def check_text(path: str | Path, text_folder: str | Path, length: int) -> None:
    """Refuses text features that another encoder made than the one that will read prompts.

    Args:
      path: folder of latents with text features.
      text_folder: model folder.
      length: tokens at which captions are cut.

    Raises:
      FileNotFoundError, ValueError: they do not belong together, or one of them is missing.
    """
    made_by, text = read_description(path)["text_encoder"], text_identity(text_folder, length)
    if made_by["length"] != length:
        raise ValueError(
            f"the text features in {path} are of captions cut at {made_by['length']} tokens, and "
            f"config.tokenizer.length is {length}: set it to {made_by['length']}, or make them "
            f"again: {COMMAND}..."
        )
    if made_by != text:
        raise ValueError(
            f"the text features in {path} were made with another text encoder or tokenizer "
            f"(sha256 {made_by['sha256'][:12]}, {made_by['tokenizer_sha256'][:12]}) than those of "
            f"{text_folder} ({text['sha256'][:12]}, {text['tokenizer_sha256'][:12]}): set "
            f"config.text_encoder to that one, or make them again: {COMMAND}..."
        )


def _files(folder: str | Path, names: Sequence[str], remedy: str) -> list[Path]:
    files = [Path(folder) / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: {remedy}")
    return files


def check_vae(path: str | Path, vae_folder: str | Path) -> None:
    """Refuses latents that another VAE made than the one that will decode them.

    Args:
      path: folder of the latents.
      vae_folder: model folder.

    Raises:
      FileNotFoundError, ValueError: they do not belong together, or one of them is missing.
    """
    made_by, vae = read_description(path)["vae"], vae_identity(vae_folder)
    if made_by["sha256"] != vae["sha256"]:
        raise ValueError(
            f"the latents in {path} were made with another VAE (sha256 {made_by['sha256'][:12]}) "
            f"than {vae_folder} ({vae['sha256'][:12]}): set config.vae to that one, or make them "
            f"again: {COMMAND}..."
        )
    for name in ("latent_mean", "latent_std"):
        if not np.array_equal(np.float32(made_by[name]), np.float32(vae[name])):
            raise ValueError(
                f"the latents in {path} were normalised with another {name} than that of "
                f"{vae_folder}: make them again: {COMMAND}..."
            )


def read_description(path: str | Path) -> dict[str, Any]:
    """The content of latents.json in the folder `path`.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is damaged or of another format.
    """
    file = Path(path) / DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"no precomputed latents at {path}: {COMMAND}{path}")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): make the latents again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{file} is not of the format {FORMAT!r}: make the latents again")
    missing = sorted({"vae", "fps"} - set(description))
    if missing:
        raise ValueError(f"{file} lacks {missing[0]!r}: make the latents again")
    return description
