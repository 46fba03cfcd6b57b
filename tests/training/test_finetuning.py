"""Fine-tuning: what is trained, what a checkpoint holds, and what comes from the model."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import load_file, save_file
from tiny_finetune import check_that_a_mesh_changes_no_gradient, make_config, make_task, run
from tiny_model import write_model

import sora_jax
from sora_jax.models.lora import scaled
from sora_jax.sharding import make_mesh
from sora_jax.training import dit_task, loop
from sora_jax.training.inherit import inherit
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.placement import place_frozen, split_of
from sora_jax.training.state import make_state
from sora_jax.weights.lora import lora_to_diffusers, merge_lora
from sora_jax.weights.lora_folder import save_lora, transformer_sha256
from sora_jax.weights.parts import load_dit
from sora_jax.weights.tensor_files import write_tensors
from tests.tiny_folders import save_vae
from tests.weights.open_folders import PIPELINE

WAN = {
    "text_length": 48,
    "shift": 5.0,
    "shift_tokens": None,
    "latent_limit": None,
    "solver": "unipc",
}


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Without the seconds that measuring the machine takes at each start."""
    monkeypatch.setattr(loop, "measure_peak", lambda: 1e9)


def write_wan_like(folder):
    """A model that samples as Wan does, predicts velocities, and has a transformer in bfloat16."""
    write_model(folder, level_grid=1000, **WAN)
    description = json.loads((folder / "model.json").read_text())
    description["parts"]["dit"]["prediction"] = "velocity"
    (folder / "model.json").write_text(json.dumps(description))
    flat = traverse_util.flatten_dict(load_dit(folder)[1], sep="/")
    layout = {name: (x.shape, np.dtype(jnp.bfloat16)) for name, x in flat.items()}
    tensors = ((name, x.astype(jnp.bfloat16)) for name, x in flat.items())
    write_tensors(folder / "dit.safetensors", layout, tensors)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_wan_like(tmp_path_factory.mktemp("model"))


def test_a_lora_run_goes_on_bit_for_bit_and_writes_what_can_be_sampled(model, tmp_path):
    whole = run(make_config(model), tmp_path / "whole", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for later in ("checkpoints/4", "model"):
        shutil.rmtree(tmp_path / "parts" / later)
    parts = run(make_config(model), tmp_path / "parts", 4)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert np.abs(whole.params["lora"]["blocks"]["mlp_in"]["b"]).max() > 0
    ema = jax.device_get(scaled(parts.ema["lora"], 16.0 / 2))
    config, params = load_dit(model)
    save_lora(tmp_path, lora_to_diffusers(ema, config), model, transformer_sha256(model), {})
    merge_lora(params, tmp_path, config)
    loaded = sora_jax.load(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, loaded.params["dit"], params)
    assert loaded.settings == sora_jax.load(model).settings


def test_only_adapters_have_a_state_and_the_model_stays_as_its_file_has_it(model, tmp_path):
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    task = make_task(make_config(model), tmp_path, split_of(mesh))
    tx = make_optimizer(steps=4, **make_config(model).optimizer)
    state, _ = make_state(task.init, tx, jax.random.key(0), mesh, task.start)
    adapters = {x.shape for x in jax.tree.leaves(state.params["lora"])}
    assert set(state.params) == {"lora"} and task.start is None
    for x in jax.tree.leaves((state.ema, state.opt_state)):
        assert x.ndim == 0 or x.shape in adapters
    assert all(2 in shape for shape in adapters)  # of low rank
    frozen = place_frozen(task.frozen, mesh)
    kernels = traverse_util.flatten_dict(frozen["dit"], sep="/")
    expected = traverse_util.flatten_dict(load_dit(model, None)[1], sep="/")
    for name, x in kernels.items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, expected[name])
    shard = kernels["blocks/mlp_in/kernel"].addressable_shards[0].data
    assert shard.shape == (2, 16, 64)
    a = state.params["lora"]["blocks"]["mlp_in"]["a"]
    assert a.dtype == jnp.float32 and a.addressable_shards[0].data.shape == (2, 16, 2)


def test_a_mesh_changes_no_gradient_of_adapters(model, tmp_path):
    task = make_task(make_config(model), tmp_path)
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(4, 2, 4, 4, 4)).astype(np.float32),
        "text": rng.normal(size=(4, 4, 16)).astype(np.float16),
    }
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    drawn = jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), nn.unbox(boxed))
    check_that_a_mesh_changes_no_gradient(task, drawn, batch, 1e-5)


def test_settings_are_those_of_the_model(model, tmp_path):
    config = make_config(model, "full", **{"data.buckets": None, "sampling.frames": 9})
    filled = inherit(config)
    assert filled.vae == filled.text_encoder == str(model)
    # Of 32 x 16 pixels, half of the nine frames among them.
    assert {frames for frames, _, _ in filled.data.buckets} == {1, 5, 9}
    assert {height * width for _, height, width in filled.data.buckets} == {256, 512}
    filled.data.buckets = ((5, 16, 32),)
    task = make_task(filled, tmp_path)
    assert task.config == load_dit(model)[0] and task.config.prediction == "velocity"
    assert set(task.start) == {"dit"} and task.adapters is None
    wanted = sora_jax.load(model).settings.override(frames=9)
    settings = {**task.settings, "guidance": wanted.guidance}
    assert settings == {name: getattr(wanted, name) for name in settings}
    assert task._shift((2, 4, 4)) == task._shift((1, 2, 2)) == 5.0
    negated = shutil.copytree(model, tmp_path / "negated")
    description = json.loads((negated / "model.json").read_text())
    description |= {"guidance": {"text": 3.0, "given": 1.5}, "negative": "blurred"}
    (negated / "model.json").write_text(json.dumps(description))
    # What the run says itself counts, and it samples as it was trained.
    for given, text, negative in ((2.0, 2.0, "blurred"), (1.0, 1.0, "")):
        config = make_config(negated, "full", **{"sampling.guidance": given})
        settings = make_task(config, tmp_path / str(given)).settings
        assert settings["guidance"]["text"] == text and settings["guidance"]["given"] == 1.5
        assert settings["negative"] == negative
    config = make_config(negated, "full", **{"sampling.negative": "a red"})
    settings = make_task(config, tmp_path / "negative").settings
    assert (settings["negative"], settings["guidance"]["text"]) == ("a red", 3.0)
    filled.noise.update({"shift": 3.0, "shift_tokens": 50})
    task = make_task(filled, tmp_path)
    assert (task.settings["shift"], task.settings["shift_tokens"]) == (3.0, 50)
    assert task._shift((2, 10, 10)) == 3.0


def test_training_tells_the_levels_that_sampling_will(model, tmp_path, monkeypatch):
    task = make_task(make_config(model), tmp_path)
    told, seen = [], {"latents": np.zeros((8, 3, 2, 4, 4), np.float32)}
    seen["text"] = np.zeros((8, 4, 16), np.float16)

    class Spy:
        def __init__(self, *_):
            pass

        def apply(self, variables, x, levels, text):
            told.append((np.asarray(x), np.asarray(levels)))
            return x

    monkeypatch.setattr(dit_task, "DiT", Spy)
    variables = {"lora": {}}, {"dit": {}}
    task.loss(*variables, seen, jax.random.key(0))
    grid = told[0][1] * 1000
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
    assert len(np.unique(grid)) > 4
    # The noise itself is of the level that was drawn, up to a thousandth above.
    noisy = told[0][0].std(axis=(2, 3, 4))
    assert (np.abs(noisy - told[0][1]) < 0.5).all()


def test_a_full_run_trains_all_of_the_transformer_from_where_its_model_is(model, tmp_path):
    config = make_config(model, "full", **{"optimizer.learning_rate": 1e-3})
    state = run(config, tmp_path, 2)  # the first at a rate of zero
    before = traverse_util.flatten_dict(load_dit(model)[1], sep="/")
    after = traverse_util.flatten_dict(state.params["dit"], sep="/")
    change = {name: np.abs(after[name] - before[name]).max() for name in before}
    assert max(change.values()) < 2e-3 and change["blocks/mlp_in/kernel"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.alpha": 3.0}, r"config.lora.alpha: alpha is 3.0, .* began with 16.0"),
        ({"lora.targets": ("mlp",)}, r"config.lora.targets: targets is \['mlp'\]"),
        ({"init": "other"}, r"config.init=.*other: base_transformer_sha256 is"),
    ],
)
def test_a_run_does_not_go_on_with_other_adapters(model, tmp_path, changes, message):
    make_task(make_config(model), tmp_path)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    make_task(make_config(model), tmp_path)
    if "init" in changes:
        # The same VAE and text encoder; the transformer is not in bfloat16.
        changes = {"init": str(write_model(tmp_path / "other", level_grid=1000, **WAN))}
        changes["dit.prediction"] = "clean"
    config = make_config(model)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        make_task(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": str(PIPELINE)}, r"an open model as it is published.*weights import --source="),
        ({"init": "", "vae": "MODEL"}, r"adapters for a model that stays as it is: .*config.init"),
        ({"text_encoder": ""}, r"adapters for a text encoder that stays .* config.text_encoder"),
        ({"lora.rank": 64}, r"config.lora.rank=64 is more than the 32 x 32 matrix"),
        ({"init": "two"}, r"two: the boundary between two transformers is None, and the parts"),
        ({"init": "vae"}, r"config.init=.* has no 'dit' part, only \['vae'\]; a model that"),
        ({"init": "unsized"}, r"config.init=.*unsized: .*model.json lacks 'size'; write the model"),
        ({"init": "misspelt"}, r"config.init=.*misspelt: .*'level_gird' is no setting of a model"),
    ],
)
def test_a_model_that_adapters_cannot_be_trained_for_is_refused(model, tmp_path, changes, message):
    if changes.get("init") == "vae":
        save_vae(tmp_path / "vae")
        changes = {"init": str(tmp_path / "vae"), "data.buckets": None}
    if changes.get("init") in ("unsized", "misspelt"):
        other = write_model(tmp_path / changes["init"])
        description = json.loads((other / "model.json").read_text())
        if changes["init"] == "unsized":
            del description["size"]
        else:
            description["level_gird"] = 1000
        (other / "model.json").write_text(json.dumps(description))
        changes = {"init": str(other), "data.buckets": None}
    if changes.get("init") == "two":
        two = write_model(tmp_path / "two")
        description = json.loads((two / "model.json").read_text())
        description["parts"]["dit_low"] = description["parts"]["dit"]
        (two / "model.json").write_text(json.dumps(description))
        changes = {"init": str(two)}
    config = make_config(model)
    if "vae" in changes:
        changes = {"init": "", "vae": str(model), "text_encoder": str(model)}
        config.update_from_flattened_dict({"tokenizer.length": 8, "data.fps": 8.0})
        config.dit.update({"width": 32, "layers": 2, "heads": 2, "mlp_width": 64})
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        make_task(config, tmp_path / "run")


@pytest.mark.parametrize(("part", "name"), [("vae", "vae"), ("text", "text_encoder")])
def test_adapters_are_trained_with_the_parts_that_they_are_sampled_with(
    model, tmp_path, part, name
):
    other = shutil.copytree(model, tmp_path / "other")
    make_task(make_config(model, **{name: str(other)}), tmp_path / "run")  # a copy will do
    tensors = load_file(other / f"{part}.safetensors")
    save_file({key: x + 1 for key, x in tensors.items()}, other / f"{part}.safetensors")
    with pytest.raises(ValueError, match=rf"config.{name}=.*other is another than that of config"):
        make_task(make_config(model, **{name: str(other)}), tmp_path / "anew")
