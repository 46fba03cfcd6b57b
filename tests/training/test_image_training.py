"""Models that see images beside the noise learn from what sampling will give them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import save_file
from tiny_finetune import check_that_a_mesh_changes_no_gradient, make_config, make_task, run

import sora_jax
from sora_jax.data.precompute import precompute
from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.sizes import abstract_params
from sora_jax.training import loop
from sora_jax.training.placement import BatchSplit
from sora_jax.training.setup import make_dit_task, workdir_path
from sora_jax.weights.__main__ import import_open
from sora_jax.weights.settings import from_settings
from tests.weights.open_folders import PROMPT, copy_image_pipeline

BUCKET = (9, 16, 32)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Without the seconds that measuring the machine takes at each start."""
    monkeypatch.setattr(loop, "measure_peak", lambda: 1e9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of I2V 14B's kind."""
    folder = tmp_path_factory.mktemp("clip")
    import_open(str(copy_image_pipeline(folder / "open")), str(folder / "model"))
    return folder / "model"


def config_of(model, kind="lora", **changes):
    changes = {"data.buckets": (BUCKET,), "loop.steps": 2, "loop.checkpoint_every": 1, **changes}
    return make_config(model, kind, **changes)


@pytest.fixture(scope="module")
def latents(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "latents"
    precompute(config_of(model, **{"data.caption_weights.detailed": 0.0}), folder)
    return str(folder)


def first_batch(config, workdir):
    task, data = make_dit_task(config, workdir_path(str(workdir)), BatchSplit(multiple=2))
    batch = next(data.loader)
    data.loader.close()
    return task, batch


def draw(tree, seed=0):
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(tree)
    return jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), shapes)


def test_what_it_sees_is_what_sampling_gives_it_on_line_and_precomputed(model, latents, tmp_path):
    # The rendered world words its detailed captions anew each time that it is read.
    same = {"data.caption_weights.detailed": 0.0}
    task, frames = first_batch(config_of(model, **same), tmp_path / "frames")
    stored, made = first_batch(
        config_of(model, **same, **{"data.latents": latents}), tmp_path / "l"
    )
    assert set(frames) == {"frames", "pixels", "tokens"}
    assert set(made) == {"latents", "image_latents", "image_tokens", "text"}
    assert "image" in task.frozen and "image" not in stored.frozen
    assert task.flops(frames) == stored.flops(made)
    sampling = sora_jax.load(model)
    online = jax.jit(task._seen)(nn.unbox(task.frozen), frames)
    for row, clip in enumerate(frames["frames"]):
        seen = sampling.look({0: clip[0]}, len(clip))
        for ours, theirs in zip(online, seen):
            np.testing.assert_allclose(ours[row], theirs[0], atol=2e-5)
    # Half precision has 11 bits: it rounds by at most 2 ** -11 of a number.
    for ours, theirs in zip(stored._seen({}, made), online):
        np.testing.assert_allclose(ours, theirs, rtol=6e-4, atol=2e-4)
    params = draw(jax.eval_shape(task.init, jax.random.key(0)))
    found = [
        float(jax.jit(each.loss)(params, nn.unbox(each.frozen), batch, jax.random.key(7))[0])
        for each, batch in ((task, frames), (stored, made))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    # And images matter.
    turned = {**made, "image_tokens": made["image_tokens"][::-1] + np.float16(1)}
    other = jax.jit(stored.loss)(params, nn.unbox(stored.frozen), turned, jax.random.key(7))[0]
    assert abs(float(other) / found[1] - 1) > 1e-2


def test_the_loss_and_its_gradient_are_those_of_a_plain_transformer_beside_channels(
    model, latents, tmp_path
):
    """The velocity of all frames is predicted, the first among them, from noise of one level."""
    config = config_of(model, "full", **{"data.latents": latents})
    task, batch = first_batch(config, tmp_path)
    params, key = {"dit": task.start["dit"]}, jax.random.key(3)

    def plain(params):
        level_key, noise_key, _, _ = jax.random.split(key, 4)
        clean = batch["latents"]
        t = jax.random.split(level_key)
        offsets = jax.random.uniform(t[0], (len(clean),))
        shares = (jax.random.permutation(t[1], len(clean)) + offsets) / len(clean)
        t = jax.nn.sigmoid(jax.scipy.stats.norm.ppf(shares))
        t = 5 * t / (1 + 4 * t)
        noise, total = jax.random.normal(noise_key, clean.shape), 0.0
        for i in range(len(clean)):
            mask = np.zeros((*clean.shape[1:4], 4), np.float32)
            mask[0] = 1
            x = (1 - t[i]) * clean[i] + t[i] * noise[i]
            x = jnp.concatenate([x, mask, np.float32(batch["image_latents"][i])], axis=-1)
            told = jnp.full((1, len(x)), jnp.floor(1000 * t[i]) / 1000)
            image = np.float32(batch["image_tokens"][i : i + 1])
            text = batch["text"][i : i + 1]
            y = DiT(task.config).apply({"params": params["dit"]}, x[None], told, text, image)
            total += jnp.mean((y[0] - (noise[i] - clean[i])) ** 2) / len(clean)
        return total

    value, gradient = jax.jit(jax.value_and_grad(plain))(params)
    loss = jax.jit(jax.value_and_grad(lambda p: task.loss(p, {}, batch, key)[0]))
    found, found_gradient = loss(params)
    assert float(found) == pytest.approx(float(value), rel=1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (found_gradient, gradient)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-6)


def test_a_mesh_changes_no_gradient_of_adapters(model, tmp_path):
    task, rng = make_task(config_of(model), tmp_path), np.random.default_rng(0)
    shapes = {"latents": (3, 2, 4, 4), "image_latents": (3, 2, 4, 4), "image_tokens": (5, 16)}
    batch = {
        name: np.float32(rng.normal(size=(4, *shape)))
        for name, shape in {**shapes, "text": (4, 12)}.items()
    }
    drawn = draw(jax.eval_shape(task.init, jax.random.key(0)))
    check_that_a_mesh_changes_no_gradient(task, drawn, batch, 1e-4)


def test_adapters_go_on_bit_for_bit_and_image_tokens_have_some(model, latents, tmp_path):
    states, workdirs = [], [tmp_path / "through", tmp_path / "parts"]
    for workdir in workdirs:
        states.append(run(config_of(model, **{"data.latents": latents}), workdir, 2, devices=1))
        if workdir == workdirs[0]:
            shutil.copytree(*workdirs)
            for later in ("checkpoints/2", "model"):
                shutil.rmtree(workdirs[1] / later)
    jax.tree.map(np.testing.assert_array_equal, *states)
    changed = states[0].params["lora"]["text_reader"]["blocks"]
    assert all(np.abs(changed[name]["b"]).max() > 0 for name in ("image_key", "image_value"))
    image = np.random.default_rng(0).integers(0, 256, (*BUCKET[1:], 3), np.uint8)
    clips = [
        sora_jax.animate(sora_jax.load(folder), image, PROMPT, frames=9, steps=2)
        for folder in (model, workdirs[1])
    ]
    assert np.abs(clips[1] - np.float32(clips[0])).mean() > 0.1


def write_kind(source, folder, **changes):
    """The model with a random transformer of other sizes, and one more of them for low noise."""
    shutil.copytree(source, folder)
    said = json.loads((folder / "model.json").read_text())
    parts = said["parts"]
    parts["dit"] |= changes
    parts["dit_low"] = parts["dit"]
    if not parts["dit"]["image_width"]:
        del parts["image"]
    said |= {"boundary": 0.9, "guidance": 3.5}
    (folder / "model.json").write_text(json.dumps(said))
    params = draw(abstract_params(init_dit, from_settings(DiTConfig, parts["dit"])))
    for part in ("dit", "dit_low"):
        save_file(traverse_util.flatten_dict(params, sep="/"), folder / f"{part}.safetensors")


@pytest.mark.parametrize("kind", ["first and last", "channels alone"])
def test_other_kinds_see_what_sampling_gives_them(model, tmp_path, kind):
    """FLF2V's the first and the last frame, I2V A14B's the first alone; one of two learns."""
    both, folder = kind == "first and last", tmp_path / "model"
    sizes = sora_jax.load(model).image_config
    write_kind(
        model, folder, **({"image_positions": 2 * sizes.tokens} if both else {"image_width": 0})
    )
    task, batch = first_batch(config_of(folder, "full", expert="low"), tmp_path / "run")
    seen = jax.jit(task._seen)(nn.unbox(task.frozen), batch)
    sampling, clip = sora_jax.load(folder), batch["frames"][1]
    expected = sampling.look({0: clip[0], 8: clip[8]} if both else {0: clip[0]}, 9)
    np.testing.assert_allclose(seen[0][1], expected.channels[0], atol=2e-5)
    if both:
        np.testing.assert_allclose(seen[1][1], expected.tokens[0], atol=2e-5)
    else:
        assert seen[1] is None and expected.tokens is None and "pixels" not in batch
    params = task.start
    loss = jax.jit(task.loss)(params, nn.unbox(task.frozen), batch, jax.random.key(0))[0]
    assert np.isfinite(loss)
    task.save(tmp_path / "saved", params, {})
    saved = sora_jax.load(tmp_path / "saved")
    assert set(saved.params) == {"vae", "dit", "dit_low", "text", *(["image"] if both else [])}
    for name in saved.params:
        jax.tree.map(np.testing.assert_array_equal, saved.params[name], sampling.params[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 2}, "config.window=2: config.init=.* begin with an image.*; make it 0"),
        ({"patterns.prefix": 0.5}, "config.patterns.prefix=0.5: .* make it 0"),
        ({"sampling.prompts": ("a",)}, r"config.sampling.prompts=\('a',\): .* make it \(\)"),
        ({"data.buckets": ((1, 16, 32),)}, r"config.data.buckets=\['1x16x32'\].* leave images out"),
    ],
)
def test_what_a_model_that_sees_images_cannot_learn_is_refused(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(config_of(model, **changes), tmp_path)


def test_latents_without_the_images_that_it_sees_are_refused(model, latents, tmp_path):
    bare = shutil.copytree(latents, tmp_path / "bare")
    said = json.loads((bare / "latents.json").read_text())
    (bare / "latents.json").write_text(json.dumps({**said, "images": None}))
    with pytest.raises(
        ValueError, match=r"bare hold no images, and .* make them again with config"
    ):
        make_task(config_of(model, **{"data.latents": str(bare)}), tmp_path / "run")
    said["images"]["last"] = True
    (bare / "latents.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"bare hold images for another model"):
        make_task(config_of(model, **{"data.latents": str(bare)}), tmp_path / "run")
