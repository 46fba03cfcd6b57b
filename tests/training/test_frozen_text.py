"""A text encoder of a model folder is used as it is: not trained, and written as it was."""

import json
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest
import tiny_dit
from tiny_folders import TEXT, WORDS, randomised, save_both, save_text

from sora_jax.language.tokenizer import Tokenizer
from sora_jax.sharding import make_mesh
from sora_jax.training import setup
from sora_jax.training.placement import BatchSplit, place_batch, split_of
from sora_jax.training.state import make_state, make_train_step
from sora_jax.weights.parts import load_text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_both(tmp_path_factory)


def make_config(vae, text):
    config = tiny_dit.get_config()
    config.data.folder = ""
    config.data.clips = 32
    config.vae, config.text_encoder = str(vae), str(text)
    return config


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A task with a frozen text encoder, and a batch of its data."""
    task, data = setup.make_dit_task(
        make_config(*folders), tmp_path_factory.mktemp("run"), split_of(make_mesh())
    )
    batch = next(data.loader)
    data.loader.close()
    return task, batch


def same(tree, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


def test_a_step_trains_the_transformer_and_nothing_of_the_text_encoder(run, folders):
    task, batch = run
    mesh, tx = make_mesh(), optax.sgd(0.1)
    with jax.set_mesh(mesh):
        state, _ = make_state(task.init, tx, jax.random.key(0), mesh)
        assert set(state.params) == {"dit"}
        before = jax.device_get(state.params)
        frozen = jax.device_put(task.frozen, jax.NamedSharding(mesh, jax.P()))
        step = jax.jit(make_train_step(task, tx, ema_decay=0.9))
        state, metrics = step(state, frozen, place_batch(batch, mesh), jax.random.key(1))
    assert metrics["gradient_norm"] > 0 and not same(state.params, before)
    assert same(frozen["text"], load_text(folders[1])[1])


def test_its_features_are_what_the_transformer_reads(run):
    task, batch = run
    params = randomised(lambda task, key: task.init(key), task)
    loss = jax.jit(lambda frozen: task.loss(params, frozen, batch, jax.random.key(2))[0])
    other = {**task.frozen, "text": jax.tree.map(lambda x: x + 0.5, task.frozen["text"])}
    assert abs(loss(task.frozen) - loss(other)) > 1e-3


def test_the_saved_model_holds_it_and_its_tokenizer(run, folders, tmp_path):
    task, _ = run
    task.save(tmp_path, {"dit": randomised(lambda task, key: task.init(key)["dit"], task)}, {})
    config, params = load_text(tmp_path)
    assert config == TEXT and same(params, load_text(folders[1])[1])
    saved, given = (Tokenizer.from_file(path / "tokenizer.json") for path in (tmp_path, folders[1]))
    for words in WORDS:
        np.testing.assert_array_equal(saved.encode(words, 16), given.encode(words, 16))


def test_without_one_a_new_one_is_trained(folders, tmp_path):
    task, data = setup.make_dit_task(make_config(folders[0], ""), tmp_path, BatchSplit())
    data.loader.close()
    assert task.text_config.width == tiny_dit.get_config().text.width
    assert "text" not in task.frozen
    assert set(jax.eval_shape(task.init, jax.random.key(0))) == {"dit", "text"}


def lose_weights(folder: pathlib.Path):
    (folder / "text.safetensors").unlink()


def lose_tokenizer(folder: pathlib.Path):
    (folder / "tokenizer.json").unlink()


def lose_part(folder: pathlib.Path):
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, "parts": {"vae": {}}}))


def shrink_vocabulary(folder: pathlib.Path):
    save_text(folder, vocabulary=260)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "holds no model.json"),
        (lose_weights, "text.safetensors is missing"),
        (lose_tokenizer, "no tokenizer at"),
        (lose_part, "has no 'text' part"),
        (shrink_vocabulary, r"tokenizer has \d+ ids and its text encoder only 260"),
    ],
)
def test_a_folder_without_all_of_it_is_refused(folders, tmp_path, damage, message):
    folder = tmp_path / "text"
    shutil.copytree(folders[1], folder)
    damage(folder)
    with pytest.raises(ValueError, match=message) as raised:
        setup.make_dit_task(make_config(folders[0], folder), tmp_path, BatchSplit())
    assert f"config.text_encoder={folder}: " in str(raised.value)
    assert "leave it empty to train a new text encoder" in str(raised.value)
