"""Every kind of open model is fine-tuned, and sampled afterwards."""

import itertools

import jax
import numpy as np
import pytest
from tiny_finetune import make_config, run

import sora_jax
from sora_jax.training import loop
from sora_jax.weights.__main__ import import_open
from tests.weights.open_folders import PROMPT, copy_ti2v


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Without the seconds that measuring the machine takes at each start."""
    monkeypatch.setattr(loop, "measure_peak", lambda: 1e9)


def are_equal(tree, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), tree, other))


def test_5b_learns_from_given_first_frames(tmp_path):
    """Its VAE is Wan 2.2's, and what is given is a latent frame at level 0: whole, then LoRA."""
    model, whole, adapted = (tmp_path / name for name in ("model", "whole", "adapted"))
    import_open(str(copy_ti2v(tmp_path / "open")), str(model))
    changes = {"data.buckets": ((5, 32, 64),), "loop.steps": 2, "patterns.first_frame": 1.0}
    state = run(make_config(model, "full", **changes), whole, 2, devices=1)
    assert set(state.params) == {"dit"} and state.skipped == 0
    state = run(make_config(whole, **changes), adapted, 2, devices=1)
    assert set(state.params) == {"lora"} and state.skipped == 0
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    models = [sora_jax.load(folder) for folder in (model, whole, adapted)]
    assert are_equal(models[2].params["vae"], models[0].params["vae"])
    clips = [sora_jax.animate(each, image, PROMPT, frames=5, steps=2) for each in models]
    for before, after in itertools.pairwise(clips):
        assert np.abs(after - np.float32(before))[1:].mean() > 0.1
