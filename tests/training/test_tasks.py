"""The tasks: the same on any mesh, and the VAE and its discriminator against each other."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sora_jax.buckets import Bucket
from sora_jax.data.loader import make_loader
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.models import attention
from sora_jax.models.discriminator import Discriminator
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.pixels import to_float
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAE as VAENetwork
from sora_jax.models.vae import VAEConfig
from sora_jax.sharding import make_mesh, tree_shardings
from sora_jax.training import dit_task, loop
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.dit_task import DiTTask, draw_windows
from sora_jax.training.levels import NoiseConfig
from sora_jax.training.loop import LoopConfig, evaluate, place_batch, train
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.state import _differentiate, jit_evaluate
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.parts import load_vae

MESHES = [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]
# The transformer's 4 places and 2 heads: exchanged, on a ring, both, and filled up to 8 places.
TOKEN_MESHES = [
    {"fsdp": 4, "context": 2},
    {"context": 8},
    {"data": 2, "context": 4},
    {"tensor": 2, "context": 4},
    {"data": 2, "context": 2, "tensor": 2},
]
VAE = VAEConfig(4, 4, (1, 2), 1, (True,), 4, patch=2)
DIT = DiTConfig(32, 2, 2, 64, 4, (1, 2, 2), 16, 16)
TEXT = TextConfig(16, 16, 2, 2, 8, 32)


@pytest.fixture(scope="module")
def dit():
    """The transformer with its text encoder, and a batch of latents and tokens."""
    noise, patterns = NoiseConfig(shift=2.0), {"none": 0.5, "first_frame": 0.5}
    task = DiTTask(DIT, TEXT, VAE, jnp.float32, noise, patterns, {}, "products", 0, None, {})
    rng = np.random.default_rng(0)
    batch = {
        "latents": rng.normal(size=(8, 2, 4, 4, 4)).astype(np.float32),
        "tokens": rng.integers(0, 16, (8, 6), np.int32),
    }
    return task, batch


@pytest.fixture(scope="module")
def vae():
    task = VAETask(VAE, jnp.float32, kl_weight=0.1, gradient_weight=0.5, change_weight=0.2, fps=8.0)
    batch = {"frames": np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8, 3), np.uint8)}
    return task, batch


@pytest.fixture(scope="module")
def adversarial(vae):
    """The VAE with a discriminator beside it."""
    task, batch = vae
    return AdversarialTask(task, weight=0.3), batch


def test_a_window_lies_anywhere_but_at_the_beginning():
    latents = np.broadcast_to(np.arange(9.0)[None, :, None], (400, 9, 2))
    windows = np.asarray(draw_windows(jax.random.key(0), latents, 5))
    assert windows.shape == (400, 5, 2)
    assert set(windows[:, 0, 0]) == {1, 2, 3, 4}
    np.testing.assert_array_equal(np.diff(windows[:, :, 0], axis=1), 1)


def test_a_window_shows_what_its_first_latent_frame_is(dit):
    """Four frames, not one: its level stays low enough to see it. Whole clips begin as noise."""
    task, _ = dit
    batch = {
        "latents": np.zeros((8, 6, 4, 4, 4), np.float32),
        "tokens": np.ones((8, 6), np.int32),
    }
    params, seen = draw_params(task), []

    class Spy:
        def __init__(self, *_):
            pass

        def apply(self, params, x, levels, text):
            seen.append(levels)
            return x

    def levels(window):
        one = dataclasses.replace(task, window=window, patterns={"none": 1.0})
        one.loss(params, {}, batch, jax.random.key(1))
        return seen.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit_task, "DiT", Spy)
        whole, cut, fits = (np.asarray(jax.jit(levels, static_argnums=0)(n)) for n in (0, 3, 6))
    assert cut.shape == (8, 3) and whole.shape == fits.shape == (8, 6)
    assert whole[:, 0].max() > 0.8 and cut[:, 1:].max() > 0.8
    assert cut[:, 0].max() == np.float32(0.7)
    np.testing.assert_array_equal(whole, fits)


def test_statistics_are_those_of_all_held_out_latents(tmp_path, vae):
    task, clips = vae
    rng = np.random.default_rng(1)
    images = {"frames": rng.integers(100, 120, (2, 1, 8, 8, 3), np.uint8)}
    mesh, params = make_mesh({"data": 1}, devices=jax.devices()[:1]), draw_params(task)
    with jax.set_mesh(mesh):
        step = jit_evaluate(task, mesh)
        scores = evaluate(step, params, {}, [clips, images], mesh, jax.random.key(0))
        task.save(tmp_path / "model", params, scores)
    encode = jax.jit(partial(VAENetwork(VAE).apply, method="encode"))
    mean, square = [], []
    for batch in (clips, images):
        m, logvar, _ = encode({"params": params}, to_float(batch["frames"]))
        mean.append(np.asarray(m, float).reshape(-1, 4))
        square.append(
            (np.asarray(m, float) ** 2 + np.exp(np.asarray(logvar, float))).reshape(-1, 4)
        )
    expected = np.concatenate(mean).mean(axis=0)
    std = np.sqrt(np.concatenate(square).mean(axis=0) - expected**2)
    saved = load_vae(tmp_path / "model")
    np.testing.assert_allclose(saved.mean, expected, atol=1e-5)
    np.testing.assert_allclose(saved.std, std, rtol=1e-4)


def draw_params(task):
    """Parameters none of which is zero, as an init would leave some: all gradients then flow."""
    return draw(jax.eval_shape(task.init, jax.random.key(0)))


def draw(boxed):
    """The same for parameters by shape, boxed."""
    rng = np.random.default_rng(0)

    def one(path, x):
        scale = np.prod(x.shape[-2:-1]) ** -0.5 if path[-1].key == "kernel" else 0.2
        gain = float("norm" in path[-1].key or "scale" in path[-1].key)
        return (gain + scale * rng.normal(size=x.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, nn.unbox(boxed))


def differentiate(task, batch, mesh):
    """Loss and gradients on a mesh."""
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    shardings = tree_shardings(boxed, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(task.loss, has_aux=True),
            out_shardings=((None, None), shardings),
        )
        params = jax.device_put(draw(boxed), shardings)
        (loss, _), gradients = step(
            params, task.frozen, place_batch(batch, mesh), jax.random.key(3)
        )
    return float(loss), gradients


@pytest.fixture(scope="module")
def single(dit, vae, adversarial):
    """By the name of the task, its loss and gradients on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    tasks = {"dit": dit, "vae": vae, "adversarial": adversarial}
    return {name: differentiate(*task, mesh) for name, task in tasks.items()}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["dit", "vae", "adversarial"])
def test_a_mesh_changes_nothing(request, single, name, mesh):
    found = differentiate(*request.getfixturevalue(name), make_mesh(mesh))
    assert_same(found, single[name])


@pytest.mark.parametrize("mesh", TOKEN_MESHES, ids=str)
def test_splitting_the_tokens_changes_nothing(monkeypatch, single, dit, mesh):
    monkeypatch.setattr(attention, "_PLAIN_SCORES", 0)  # long clips' kernels for short ones
    assert_same(differentiate(*dit, make_mesh(mesh)), single["dit"])


def test_a_batch_in_parts_is_the_mean_of_its_parts(dit):
    """Parts hold every second clip, so that each has some of every device."""
    task, batch = dit
    params, key = draw_params(task), jax.random.key(3)
    with jax.set_mesh(make_mesh({"fsdp": 4}, jax.devices()[:4])):
        together = jax.jit(lambda params, batch: _differentiate(task, params, {}, batch, key, 2))
        loss, metrics, gradients = together(params, batch)
    parts = [
        jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
            params, {}, {name: x[i::2] for name, x in batch.items()}, key
        )
        for i, key in enumerate(jax.random.split(key, 2))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, parts[0][1], parts[1][1])
    expected = float(parts[0][0][0] + parts[1][0][0]) / 2
    assert_same((float(loss), gradients), (expected, mean))
    assert set(metrics) == set(parts[0][0][1])


def test_parts_that_do_not_divide_a_batch_are_refused(dit):
    task, batch = dit
    parts = partial(_differentiate, task, draw_params(task), {}, batch, jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"config.loop.accumulate=3: the 8 clips"):
        jax.eval_shape(parts)


def assert_same(found, wanted):
    """Loss and gradients, within 1e-5 of their size."""
    (loss, gradients), (expected_loss, expected) = found, wanted
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected)
    ):
        scale = np.abs(wanted).max()
        assert scale > 0, path
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale, err_msg=str(path))


def assert_equal(found, wanted):
    """Gradients that two programs computed, up to their rounding."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def test_each_adversarial_term_moves_one_network(adversarial):
    task, batch = adversarial
    batch = {"frames": batch["frames"][:2]}
    params, key = draw_params(task), jax.random.key(3)

    def score(params, frames):
        return Discriminator().apply({"params": params["discriminator"]}, frames)

    def reconstruction(params):
        return task.vae.compare(params["vae"], task.frozen, batch, key)[3]

    def generator(params):
        return -jnp.mean(score(params, reconstruction(params)))

    def judge(params):
        fake, real = jax.lax.stop_gradient(reconstruction(params)), to_float(batch["frames"])
        return jnp.mean(jnp.maximum(1 - score(params, real), 0)) + jnp.mean(
            jnp.maximum(1 + score(params, fake), 0)
        )

    def alone(params):
        return task.vae.loss(params["vae"], task.frozen, batch, key)[0]

    @jax.jit
    def separately(params):
        return [jax.value_and_grad(term)(params) for term in (alone, generator, judge)]

    (_, vae), (score_loss, pull), (judge_loss, teach) = separately(params)
    found, metrics = jax.jit(jax.grad(task.loss, has_aux=True))(params, task.frozen, batch, key)
    # What the discriminator learns says nothing to the VAE, nor the VAE's aim to the discriminator.
    vae, pull, teach = vae["vae"], pull["vae"], teach["discriminator"]
    assert_equal(found["vae"], jax.tree.map(lambda a, b: a + task.weight * b, vae, pull))
    assert_equal(found["discriminator"], jax.tree.map(lambda a: task.weight * a, teach))
    assert largest(pull) > 1e-3 * largest(vae) and largest(teach) > 0
    assert metrics["adversarial"] == pytest.approx(float(score_loss), rel=1e-4)
    assert metrics["discriminator"] == pytest.approx(float(judge_loss), rel=1e-4)
    assert 0 <= metrics["discriminator_accuracy"] <= 1


def test_training_with_a_discriminator_writes_the_vae_alone(tmp_path, monkeypatch, adversarial):
    monkeypatch.setattr(loop, "measure_peak", lambda: 1e9)
    task, batch = adversarial
    mesh = make_mesh(devices=jax.devices()[:1])
    bucket = Bucket(*batch["frames"].shape[1:4])
    loader = make_loader(Shapes(64, [bucket]), [bucket], batch_size=lambda bucket: 2, seed=0)
    tx = make_optimizer(
        learning_rate=1e-3,
        muon_learning_rate=0.0,
        steps=4,
        warmup_steps=1,
        decay_share=0.3,
        weight_decay=0.0,
        b2=0.9,
        clip=1.0,
    )
    config = LoopConfig(
        steps=3,
        seed=0,
        ema_decay=0.9,
        log_every=1,
        evaluate_every=100,
        checkpoint_every=100,
        save_every=100,
    )
    try:
        state = train(task, tx, loader, [batch], config, tmp_path, mesh)
    finally:
        loader.close()
    assert int(state.step) == 3 and int(state.skipped) == 0
    head = state.params["discriminator"]["head"]["kernel"]
    assert np.abs(head).min() > 0  # it starts at zero
    saved = load_vae(tmp_path / "model")
    assert saved.config == VAE
    np.testing.assert_equal(saved.params, jax.device_get(state.ema["vae"]))
    assert task.flops(batch) > task.vae.flops(batch)
