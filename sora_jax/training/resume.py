"""What a run of the transformer must find again when it goes on: its tokenizer and its VAE.

Both come from outside the checkpoint and could change under a run: captions that are edited or
read from another dataset train another tokenizer, whose every id means something else.
"""

import json
import pathlib
from collections.abc import Callable

from sora_jax.data.identity import vae_identity
from sora_jax.language.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
VAE = "vae.json"


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a run in this work folder has come to its first checkpoint."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def keep_tokenizer(workdir: pathlib.Path, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that the run began with; what `make` returns where it only begins."""
    file = workdir / TOKENIZER
    if has_checkpoint(workdir) and file.is_file():
        return Tokenizer.from_file(file)
    tokenizer = make()
    tokenizer.save(file)
    return tokenizer


def keep_vae(workdir: pathlib.Path, folder: str) -> None:
    """Writes down the VAE of a run that begins, and refuses another one when it goes on.

    Args:
      workdir: of the run.
      folder: model folder of the VAE.

    Raises:
      ValueError: it is not the VAE that the run began with.
    """
    file, identity = workdir / VAE, vae_identity(folder)
    if not (has_checkpoint(workdir) and file.is_file()):
        file.write_text(json.dumps(identity, indent=1), encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != identity:
        raise ValueError(
            f"config.vae={folder} is not the VAE that the run in {workdir} began with: give that "
            "one, or begin anew in another --workdir"
        )
