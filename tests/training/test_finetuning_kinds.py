"""Every kind of open model is fine-tuned, and sampled afterwards."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_finetune import make_config, make_task, run

import sora_jax
from sora_jax.data.precompute import precompute
from sora_jax.training import dit_task, loop
from sora_jax.weights.__main__ import import_open
from tests.weights.open_folders import PROMPT, copy_experts, copy_ti2v


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


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A model folder of A14B's kind."""
    folder = tmp_path_factory.mktemp("experts")
    import_open(str(copy_experts(folder / "open")), str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def latents(experts, tmp_path_factory):
    """Of the rendered world, with text features, as its VAE and text encoder make them."""
    folder = tmp_path_factory.mktemp("latents") / "latents"
    precompute(make_config(experts), folder)
    return {"data.latents": str(folder), "loop.steps": 2, "loop.checkpoint_every": 1}


def test_one_of_two_transformers_learns_and_the_other_is_copied(experts, latents, tmp_path):
    config = make_config(experts, "full", expert="high", **latents)
    state = run(config, tmp_path, 2, devices=1)
    assert set(state.params) == {"dit"} and state.skipped == 0
    for part, same in (("dit_low", True), ("dit", False)):
        one, other = (f / f"{part}.safetensors" for f in (experts, tmp_path / "model"))
        assert (one.read_bytes() == other.read_bytes()) == same
    before, after = sora_jax.load(experts), sora_jax.load(tmp_path)
    assert after.settings == dataclasses.replace(before.settings, fps=8.0)
    # A run of the other may begin with that, on the same latents.
    made_with = {"vae": str(experts), "text_encoder": str(experts)}
    config = make_config(tmp_path, "full", expert="low", **made_with, **latents)
    start = make_task(config, tmp_path / "next").start["dit"]
    assert are_equal(start, before.params["dit_low"])


def test_adapters_of_one_of_two_transformers_go_on_bit_for_bit(experts, latents, tmp_path):
    states, workdirs = [], [tmp_path / "through", tmp_path / "parts"]
    for workdir in workdirs:
        states.append(run(make_config(experts, expert="low", **latents), workdir, 2, devices=1))
        if workdir == workdirs[0]:
            shutil.copytree(*workdirs)
            for later in ("checkpoints/2", "model"):
                shutil.rmtree(workdirs[1] / later)
    jax.tree.map(np.testing.assert_array_equal, *states)
    before, after = sora_jax.load(experts), sora_jax.load(workdirs[1])
    same = {name: are_equal(params, after.params[name]) for name, params in before.params.items()}
    assert same == {"vae": True, "dit": True, "dit_low": False, "text": True}
    with pytest.raises(ValueError, match=r"config.expert='high' is not the .* began .*give 'low'"):
        make_task(make_config(experts, expert="high"), workdirs[0])


@pytest.mark.parametrize("expert", ["high", "low"])
def test_one_of_two_transformers_sees_the_noise_that_it_will(
    experts, tmp_path, expert, monkeypatch
):
    task, told = make_task(make_config(experts, "full", expert=expert), tmp_path), []
    seen = {"latents": np.zeros((64, 2, 2, 4, 4), np.float32)}
    seen["text"] = np.zeros((64, 4, 12), np.float16)

    class Spy:
        def __init__(self, *_):
            pass

        def apply(self, variables, x, levels, text):
            told.append(np.asarray(levels))
            return x

    monkeypatch.setattr(dit_task, "DiT", Spy)
    task.loss({"dit": {}}, {}, seen, jax.random.key(0))
    low, high = (0.875, 1.0) if expert == "high" else (0.0, 0.8745)
    assert low <= told[0].min() and told[0].max() <= high
    assert len(np.unique(told[0])) > 20 and np.ptp(told[0]) > 0.4 * (high - low)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"has two transformers, .* config.expert='' must be one of \['high', 'low'\]"),
        ({"expert": "both"}, "config.expert='both' must be one of"),
        ({"expert": "low", "window": 2}, "config.window=2 shows frames at levels of their own"),
        ({"expert": "low", "patterns.staircase": 0.5}, "config.patterns.staircase=0.5 shows"),
        (
            {"expert": "low", "noise.mean": 9.0},
            r"draws 0.00% of its levels from 0 to 0.875, .* move the mean, or widen it by std",
        ),
    ],
)
def test_what_one_of_two_transformers_cannot_learn_is_refused(experts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(make_config(experts, **changes), tmp_path)


def test_which_of_two_transformers_is_asked_of_a_model_of_one(experts, tmp_path):
    one = shutil.copytree(experts, tmp_path / "one")
    (one / "dit_low.safetensors").unlink()
    said = json.loads((one / "model.json").read_text())
    del said["parts"]["dit_low"]
    said |= {"boundary": None, "guidance": 4.0}
    (one / "model.json").write_text(json.dumps(said))
    make_task(make_config(one), tmp_path / "run")
    with pytest.raises(ValueError, match=r"config.expert='low' is one of two .* has one only"):
        make_task(make_config(one, expert="low"), tmp_path / "run")
