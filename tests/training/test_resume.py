"""A run that goes on has the tokenizer, the VAE and the text encoder that it began with."""

import shutil

import pytest

from sora_jax.language.tokenizer import train
from sora_jax.loading import PRETRAINED
from sora_jax.training.resume import keep_text_encoder, keep_tokenizer, keep_vae


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


@pytest.mark.parametrize(
    ("keep", "part", "message"),
    [
        (
            lambda workdir, folder: keep_vae(workdir, folder, "vae"),
            "vae",
            r"config.vae=.* is not the VAE that the run in .* began with",
        ),
        (
            lambda workdir, folder: keep_text_encoder(workdir, folder, 32),
            "text",
            r"config.text_encoder=.* is not the encoder that the run in .* began with",
        ),
    ],
)
def test_another_network_is_refused_once_there_is_a_checkpoint(tmp_path, keep, part, message):
    model = tmp_path / "model"
    shutil.copytree(PRETRAINED, model)
    keep(tmp_path, str(model))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    keep(tmp_path, str(model))
    with open(model / f"{part}.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ValueError, match=message):
        keep(tmp_path, str(model))


def test_what_a_run_began_with_is_named_where_it_is_damaged_or_lost(tmp_path):
    keep_vae(tmp_path, PRETRAINED, "vae")
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "vae.json").write_text('{"sha256": "12')
    with pytest.raises(ValueError, match=r"vae.json is damaged .*: put back what the run began"):
        keep_vae(tmp_path, PRETRAINED, "vae")
    (tmp_path / "vae.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints and no vae.json, .* put it back, or"):
        keep_vae(tmp_path, PRETRAINED, "vae")
    with pytest.raises(ValueError, match=r"has checkpoints and no tokenizer.json, which"):
        keep_tokenizer(tmp_path, first)


def test_a_text_encoder_is_its_tokenizer_and_the_length_of_prompts_too(tmp_path):
    shutil.copytree(PRETRAINED, tmp_path / "model")
    keep_text_encoder(tmp_path, str(tmp_path / "model"), 32)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config.tokenizer.length=16 is not the encoder"):
        keep_text_encoder(tmp_path, str(tmp_path / "model"), 16)
    other().save(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(ValueError, match="is not the encoder"):
        keep_text_encoder(tmp_path, str(tmp_path / "model"), 32)
