"""What a run must find again when it goes on: tokenizer, VAE, text encoder, adapters, batches.

They come from outside the checkpoint and could change under a run: captions that are edited or
read from another dataset train another tokenizer, whose every id means something else. The first
host writes them down for all.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from sora_jax.data.identity import text_identity, vae_identity
from sora_jax.digests import weights_sha256
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.training.dit_task import Adapters
from sora_jax.training.hosts import wait_for_all
from sora_jax.training.placement import BatchSplit
from sora_jax.training.remote import Folder, local_file, upload

TOKENIZER = "tokenizer.json"
VAE = "vae.json"
TEXT = "text_encoder.json"
BATCHES = "batches.json"
ADAPTERS = "adapters.json"
EXPERT = "expert.json"


def has_checkpoint(workdir: Folder) -> bool:
    """Whether a run in this work folder has come to its first checkpoint."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def keep_tokenizer(workdir: Folder, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer that the run began with; what `make` returns where it only begins.

    Raises:
      ValueError: the run has checkpoints and no tokenizer.
    """
    file = workdir / TOKENIZER
    if not _has_begun(workdir, TOKENIZER) and jax.process_index() == 0:
        with tempfile.TemporaryDirectory() as scratch:
            make().save(f"{scratch}/{TOKENIZER}")
            upload(pathlib.Path(scratch), workdir)
    wait_for_all("the tokenizer is written")
    with local_file(file) as local:
        return Tokenizer.from_file(local)


def _has_begun(workdir: Folder, name: str) -> bool:
    """Whether a run has checkpoints; raises ValueError if it lacks a file of its beginning."""
    begun = has_checkpoint(workdir)
    if begun and not (workdir / name).is_file():
        raise ValueError(
            f"{workdir} has checkpoints and no {name}, which their run wrote down as it began: put "
            "it back, or begin anew in another --workdir"
        )
    return begun


def _begun_with(workdir: Folder, name: str) -> dict[str, Any] | None:
    """What a run wrote down as it began; None where it only begins.

    Raises:
      ValueError: the file is missing or damaged.
    """
    if not _has_begun(workdir, name):
        return None
    file = workdir / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged ({error}): put back what the run began with, or begin anew in "
            "another --workdir"
        ) from error


def _write_down(workdir: Folder, name: str, said: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        (workdir / name).write_text(json.dumps(said, indent=1), encoding="utf-8")


def keep_vae(workdir: Folder, folder: pathlib.Path | str, name: str) -> None:
    """Writes down the VAE of a run that begins, and refuses another one when it goes on.

    Args:
      workdir: of the run.
      folder: model folder of the VAE.
      name: of the config's field that names it.

    Raises:
      ValueError: it is not the VAE that the run began with.
    """
    _keep(workdir, VAE, vae_identity(folder), f"config.{name}={folder} is not the VAE")


def keep_text_encoder(workdir: Folder, folder: str, length: int) -> None:
    """The same of a frozen text encoder and its tokenizer, whose prompts are cut at `length`.

    It may be larger than the transformer: its weights are told by `digests.weights_sha256`.
    """
    identity = text_identity(folder, length, weights_sha256)
    what = f"config.text_encoder={folder} at config.tokenizer.length={length} is not the encoder"
    _keep(workdir, TEXT, identity, what)


def _keep(workdir: Folder, name: str, identity: dict[str, Any], what: str) -> None:
    """Writes down what a run begins with; raises ValueError where it goes on with another."""
    began = _begun_with(workdir, name)
    if began is None:
        _write_down(workdir, name, identity)
    elif began != identity:
        raise ValueError(
            f"{what} that the run in {workdir} began with: give that one, or begin anew in another "
            "--workdir"
        )


def keep_adapters(workdir: Folder, folder: str, adapters: Adapters) -> None:
    """Writes down what a LoRA run trains adapters for, and refuses anything else when it goes on.

    A checkpoint has the adapters alone: it would fit any model of the same sizes, and any alpha.

    Args:
      workdir: of the run.
      folder: of the model, to be named.
      adapters: of the run.

    Raises:
      ValueError: it is not what the run began with.
    """
    said = json.loads(json.dumps(dataclasses.asdict(adapters.config)))
    said["base_transformer_sha256"] = adapters.base_sha256
    began = _begun_with(workdir, ADAPTERS)
    if began is None:
        _write_down(workdir, ADAPTERS, said)
        return
    for name, value in said.items():
        if began.get(name) != value:
            what = f"config.init={folder}" if name.startswith("base") else f"config.lora.{name}"
            raise ValueError(
                f"{what}: {name} is {value}, and the run in {workdir} began with "
                f"{began.get(name)}: give that one, or begin anew in another --workdir"
            )


def keep_expert(workdir: Folder, expert: str) -> None:
    """Writes down which of two transformers a run trains, and refuses the other when it goes on.

    A checkpoint would fit both.

    Args:
      workdir: of the run.
      expert: what the config calls it.

    Raises:
      ValueError: it is not the one that the run began with.
    """
    began = _begun_with(workdir, EXPERT)
    if began is None:
        _write_down(workdir, EXPERT, {"expert": expert})
    elif began["expert"] != expert:
        raise ValueError(
            f"config.expert={expert!r} is not the transformer that the run in {workdir} began "
            f"with: give {began['expert']!r}, or begin anew in another --workdir"
        )


def kept_multiple(workdir: Folder, split: BatchSplit) -> BatchSplit:
    """The split with the multiple that batches had when the run began, or its own if it begins.

    So its batches, and with them the order of its data, stay the same on more or fewer devices.
    """
    began = _begun_with(workdir, BATCHES)
    return split if began is None else dataclasses.replace(split, multiple=began["multiple"])


def keep_multiple(workdir: Folder, split: BatchSplit) -> None:
    """Writes down the multiple of a run, once nothing of it is refused any more."""
    if _begun_with(workdir, BATCHES) is None:
        _write_down(workdir, BATCHES, {"multiple": split.multiple})
