"""latents.json: which networks made precomputed latents, and whether a run uses the same ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "sora_jax latents 1"
DESCRIPTION = "latents.json"
COMMAND = "python -m sora_jax.data.precompute --config=configs/NAME.py --output="


def vae_identity(folder: str | Path) -> dict[str, Any]:
    """What tells the VAE of a model folder from others: its parameters and how latents are scaled.

    Raises:
      FileNotFoundError, ValueError: it is no model folder with a VAE.
    """
    folder = Path(folder)
    weights, description = folder / "vae.safetensors", folder / "model.json"
    for file in (weights, description):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: give the model folder of a trained VAE")
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        vae = json.loads(description.read_text(encoding="utf-8"))["parts"]["vae"]
        mean, std = list(vae["latent_mean"]), list(vae["latent_std"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{description} has no latent_mean and latent_std of a VAE") from error
    return {"sha256": digest, "latent_mean": mean, "latent_std": std}


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
    if description.get("format") != FORMAT:
        raise ValueError(f"{file} is not of the format {FORMAT!r}: make the latents again")
    return description
