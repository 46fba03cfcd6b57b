"""Writing models: half the size, only of what half precision holds, and whole or not at all."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.loading import PRETRAINED
from sora_jax.weights.__main__ import export
from sora_jax.weights.model_folder import check_space, replaced


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a copy of the shipped model."""
    shutil.copytree(PRETRAINED, tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_paths_may_begin_at_home(home):
    export("~/model", "~/half")
    parameters = load_file(home / "half" / "dit.safetensors")
    assert {x.dtype for x in parameters.values()} == {np.dtype(np.float16)}
    assert sora_jax.load(home / "half").settings == sora_jax.load(home / "model").settings


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.nan, "holds NaN or infinity"),
        (np.inf, "holds NaN or infinity"),
        (70_000.0, "text has parameters .* beyond"),
    ],
)
def test_parameters_that_half_precision_cannot_hold_are_refused(home, value, why):
    file = home / "model" / "text.safetensors"
    parameters = {name: np.float32(x) for name, x in load_file(file).items()}
    next(iter(parameters.values())).flat[0] = value
    save_file(parameters, file)
    with pytest.raises(ValueError, match=why):
        export(str(home / "model"), str(home / "half"))
    assert not (home / "half").exists()


def test_without_room_for_a_model_nothing_is_made(tmp_path):
    with pytest.raises(ValueError, match=r"out takes 1208925819614629.2 GB, and .* are free there"):
        check_space(tmp_path / "deep" / "out", 2**80)
    check_space(tmp_path / "deep" / "out", 1)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.json").write_text("{}")
    for folder in (tmp_path / "new", tmp_path / "old"):
        with pytest.raises(RuntimeError, match="stopped"), replaced(folder) as scratch:
            (scratch / "model.json").write_text("half")
            raise RuntimeError("stopped")
    assert [file.name for file in tmp_path.iterdir()] == ["old"]
    assert [file.read_text() for file in (tmp_path / "old").iterdir()] == ["{}"]
