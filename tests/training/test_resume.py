"""A run that goes on has the tokenizer and the VAE that it began with."""

import shutil

import pytest

from sora_jax.language.tokenizer import train
from sora_jax.pipeline import PRETRAINED
from sora_jax.training.resume import keep_tokenizer, keep_vae


def first():
    return train(["one red circle"] * 9, 300)


def other():
    return train(["two green squares"] * 9, 300)


def test_the_tokenizer_stays_once_there_is_a_checkpoint(tmp_path):
    keep_tokenizer(tmp_path, other)
    began = keep_tokenizer(tmp_path, first)  # the first start came to nothing
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    resumed = keep_tokenizer(tmp_path, other)
    text = "one red circle"
    assert resumed.encode(text, 16).tolist() == began.encode(text, 16).tolist()
    assert resumed.encode(text, 16).tolist() != other().encode(text, 16).tolist()


def test_another_vae_is_refused_once_there_is_a_checkpoint(tmp_path):
    vae = tmp_path / "vae"
    shutil.copytree(PRETRAINED, vae)
    keep_vae(tmp_path, str(vae))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    keep_vae(tmp_path, str(vae))
    with open(vae / "vae.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match=r"not the VAE that the run in .* began with"):
        keep_vae(tmp_path, str(vae))
