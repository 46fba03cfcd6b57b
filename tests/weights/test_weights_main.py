"""Export: half the size, and only of parameters that half precision holds."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.loading import PRETRAINED
from sora_jax.weights.__main__ import export


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
