"""Precomputed text features are what a frozen encoder makes on-line, for the same captions."""

import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_dit
from tiny_folders import TEXT, randomised, save_both, save_text

from sora_jax.buckets import Bucket
from sora_jax.data.identity import check_text
from sora_jax.data.latent_records import Record, write_latents
from sora_jax.data.latents import LatentDataset
from sora_jax.data.precompute import precompute
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.text import TextEncoder
from sora_jax.training import setup
from sora_jax.training.placement import BatchSplit
from sora_jax.weights.parts import load_text

LENGTH = 16  # of tiny_dit: detailed captions are longer, and cut
# Half precision has 11 bits: it rounds by at most 2 ** -11 of a number.
ROUNDING = {"rtol": 6e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_both(tmp_path_factory)


def make_config(folders):
    config = tiny_dit.get_config()
    config.data.folder = ""
    config.data.clips = 24
    config.data.caption_dropout = 0.3
    config.vae, config.text_encoder = map(str, folders)
    assert config.tokenizer.length == LENGTH
    return config


@pytest.fixture
def config(folders):
    return make_config(folders)


@pytest.fixture(scope="module")
def precomputed(folders, tmp_path_factory):
    """Latents with text features of the rendered world."""
    output = tmp_path_factory.mktemp("latents") / "latents"
    precompute(make_config(folders), output)
    return output


@pytest.fixture(scope="module")
def encode(folders):
    """Features float32 [L, D] of a caption, by the encoder itself."""
    tokenizer = Tokenizer.from_file(folders[1] / "tokenizer.json")
    _, params = load_text(folders[1])
    apply = jax.jit(lambda tokens: TextEncoder(TEXT).apply({"params": params}, tokens)[0])
    return lambda caption: np.asarray(apply(tokenizer.encode(caption, LENGTH)[None]))


def batches(config, count=4):
    """The task, and its first batches and one held-out one."""
    with tempfile.TemporaryDirectory() as workdir:
        task, data = setup.make_dit_task(config, pathlib.Path(workdir), BatchSplit(multiple=8))
    found = [next(data.loader) for _ in range(count)]
    data.loader.close()
    return task, [*found, data.held_out[0]]


def test_the_loss_is_that_of_training_on_line(config, precomputed):
    # The rendered world words its detailed captions anew each time that it is read.
    config.data.caption_weights.detailed = 0.0
    task, online = batches(config)
    config.data.latents = str(precomputed)
    other, stored = batches(config)
    params = randomised(lambda task, key: task.init(key), task)
    loss = jax.jit(task.loss)
    changed = []
    for frames, latents in zip(online, stored):
        assert set(frames) == {"frames", "tokens"} and set(latents) == {"latents", "text"}
        # The last is what other clips' text would give.
        swapped = {**latents, "text": np.roll(latents["text"], 1, axis=0)}
        expected, found, wrong = (
            float(loss(params, task.frozen, batch, jax.random.key(7))[0])
            for batch in (frames, latents, swapped)
        )
        assert found == pytest.approx(expected, rel=2e-4)
        changed.append(abs(wrong / expected - 1))
    assert max(changed) > 1e-3
    assert task.flops(online[0]) == other.flops(stored[0])


def test_the_same_captions_are_chosen_and_dropped_as_with_tokens(
    config, precomputed, encode, tmp_path
):
    frozen, config.text_encoder = config.text_encoder, ""
    precompute(config, tmp_path / "plain")
    assert not (tmp_path / "plain" / "empty_text.npy").exists()
    config.data.latents, config.text_encoder = str(tmp_path / "plain"), frozen
    task, tokenized = batches(config, count=6)
    config.data.latents = str(precomputed)
    _, stored = batches(config, count=6)
    read = jax.jit(lambda batch: task._text({}, task.frozen, batch))
    empty, dropped, cut = encode(""), 0, 0
    for tokens, features in zip(tokenized, stored):
        assert set(tokens) == {"latents", "tokens"}
        np.testing.assert_array_equal(tokens["latents"], features["latents"])
        assert features["text"].dtype == np.float16
        assert features["text"].shape == (len(tokens["tokens"]), LENGTH, TEXT.width)
        np.testing.assert_allclose(features["text"], read(tokens), **ROUNDING)
        dropped += sum(np.allclose(row, empty, **ROUNDING) for row in features["text"])
        cut += tokens["tokens"].all(axis=1).sum()
    # Long captions and short ones and none.
    assert dropped and cut and dropped + cut < sum(len(batch["text"]) for batch in stored)


def test_dropout_takes_the_features_of_the_empty_caption(config, precomputed, encode):
    config.data.latents, config.data.caption_dropout = str(precomputed), 1.0
    _, found = batches(config, count=2)
    empty = encode("")
    assert np.abs(empty[0]).max() > 0.1 and not empty[1:].any()
    for text in found[0]["text"], found[1]["text"]:
        np.testing.assert_allclose(text, np.broadcast_to(empty, text.shape), **ROUNDING)
    # Held-out captions are never dropped.
    assert not any(np.allclose(row, empty, **ROUNDING) for row in found[-1]["text"])


def test_records_hold_each_caption_up_to_its_end(precomputed, encode):
    lengths = set()
    for record in tfds.builder_from_directory(precomputed).as_data_source("train"):
        for kind, caption in record["captions"].items():
            features, expected = record["text"][kind], encode(caption.decode())
            assert features.dtype == np.float16
            np.testing.assert_allclose(features, expected[: len(features)], **ROUNDING)
            assert features[-1].any() and not expected[len(features) :].any()
            lengths.add(len(features))
    assert len(lengths) > 1 and max(lengths) == LENGTH


def test_a_caption_that_a_clip_lacks_has_no_features(tmp_path):
    """And those of another are not taken for it."""
    bucket, shape = Bucket(1, 16, 16), (1, 2, 2, 4)
    text = {"short": np.full((2, 3), 7.0, np.float16)}
    records = [
        Record(np.zeros(shape), bucket, {"short": "s"}, "a", 0, 0, text),
        Record(np.ones(shape), bucket, {}, "b", 1, 0, {}),
    ]
    description = {"fps": 8.0, "vae": {}}
    empty = np.full((1, 3), 5.0)
    write_latents(tmp_path / "o", {"train": [lambda: iter(records)]}, 4, description, empty)
    dataset = LatentDataset(tmp_path / "o", text_length=4)
    found = [dataset.read(i, bucket, None)["text"] for i in range(2)]
    assert [set(each) for each in found] == [{"short", ""}, {""}]
    assert found[0]["short"][:, 0].tolist() == [7, 7, 0, 0]
    assert found[1][""][:, 0].tolist() == [5, 0, 0, 0]
    assert "text" not in LatentDataset(tmp_path / "o").read(0, bucket, None)


def test_another_encoder_tokenizer_or_length_is_refused(config, precomputed, folders, tmp_path):
    config.data.latents = str(precomputed)
    other = tmp_path / "other"
    save_text(other, seed=1)
    config.text_encoder = str(other)
    with pytest.raises(ValueError, match=r"another text encoder .*set config.text_encoder to that"):
        setup.make_dit_task(config, tmp_path, BatchSplit())
    same, description = tmp_path / "same", folders[1] / "model.json"
    shutil.copytree(folders[1], same)
    check_text(precomputed, same, LENGTH)
    settings = json.loads(description.read_text())
    settings["parts"]["text"]["max_distance"] = 64
    (same / "model.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="another text encoder"):
        check_text(precomputed, same, LENGTH)
    shutil.copy(description, same)
    (same / "tokenizer.json").write_text((same / "tokenizer.json").read_text() + "\n")
    with pytest.raises(ValueError, match="another text encoder or tokenizer"):
        check_text(precomputed, same, LENGTH)
    config.text_encoder, config.tokenizer.length = str(folders[1]), 12
    with pytest.raises(ValueError, match=r"cut at 16 tokens.*config.tokenizer.length is 12"):
        setup.make_dit_task(config, tmp_path, BatchSplit())


def test_a_new_encoder_is_trained_on_captions_beside_features(config, precomputed):
    config.data.latents, config.text_encoder = str(precomputed), ""
    config.sampling.prompts = ()  # too long for a tokenizer of 16 clips
    task, found = batches(config, count=1)
    assert set(found[0]) == {"latents", "tokens"} and "text" not in task.frozen


@pytest.mark.parametrize("missing", ["text.safetensors", "tokenizer.json", "model.json"])
def test_precomputing_without_the_encoder_is_refused(config, folders, tmp_path, missing):
    shutil.copytree(folders[1], tmp_path / "text")
    (tmp_path / "text" / missing).unlink()
    config.text_encoder = str(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing: config.text_encoder"):
        precompute(config, tmp_path / "output")
    assert [file.name for file in tmp_path.iterdir()] == ["text"]
