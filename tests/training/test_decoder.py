"""Training a decoder alone, for latents that stay as they are."""

import pathlib

import jax
import numpy as np
import pytest
import tiny_vae
from flax import linen as nn

from sora_jax.models.vae import init_vae
from sora_jax.models.vae_config import VAEConfig
from sora_jax.training import setup
from sora_jax.training.placement import BatchSplit
from sora_jax.weights.model_folder import Part, save_model
from sora_jax.weights.parts import load_vae
from sora_jax.weights.settings import from_settings


def save_vae(folder, config, seed):
    """A random VAE whose latents have statistics that no training would come to."""
    params = nn.meta.unbox(jax.jit(init_vae, static_argnums=0)(config, jax.random.key(seed)))
    settings = {**vars(config), "latent_mean": [7.0] * 4, "latent_std": [5.0] * 4}
    save_model(folder, {"vae": Part(settings, params)}, {"fps": 8.0})


@pytest.fixture
def config(tmp_path):
    config = tiny_vae.get_config()
    config.data.folder = ""
    config.data.clips = 50
    config.keep_encoder = True
    config.init = str(tmp_path / "whole")
    save_vae(tmp_path / "whole", from_settings(VAEConfig, config.vae), 0)
    return config


def make_task(config, workdir):
    workdir.mkdir(exist_ok=True)
    task, data = setup.make_vae_task(config, workdir, BatchSplit())
    data.loader.close()
    return task, data


def test_only_the_decoder_learns(config, tmp_path):
    task, data = make_task(config, tmp_path)
    before = load_vae(config.init)
    np.testing.assert_equal(task.start, {"decoder": before.params["decoder"]})
    loss = jax.jit(jax.value_and_grad(lambda *x: task.loss(*x)[0]))
    value, grads = loss(task.start, task.frozen, data.held_out[0], jax.random.key(0))
    # The same loss as of a run that trains both, and the gradient of its half.
    config.keep_encoder = False
    both, data = make_task(config, tmp_path / "both")
    loss = jax.jit(jax.value_and_grad(lambda *x: both.loss(*x)[0]))
    same, of_both = loss(both.start, both.frozen, data.held_out[0], jax.random.key(0))
    assert float(value) == pytest.approx(float(same), rel=1e-5)
    assert set(grads) == {"decoder"}
    largest = max(np.abs(x).max() for x in jax.tree.leaves(of_both["decoder"]))
    for found, expected in zip(*map(jax.tree.leaves, (grads, {"decoder": of_both["decoder"]}))):
        np.testing.assert_allclose(found, expected, atol=1e-4 * largest)


def test_a_trained_decoder_is_written_with_the_encoder_and_its_latents(config, tmp_path):
    task, _ = make_task(config, tmp_path)
    before = load_vae(config.init)
    trained = jax.tree.map(lambda x: x + 1, task.start)
    task.show = []
    task.save(tmp_path / "model", trained, {})
    after = load_vae(tmp_path / "model")
    np.testing.assert_equal(after.params, {**before.params, **trained})
    np.testing.assert_equal([after.mean, after.std], [before.mean, before.std])
    assert after.config == before.config


def test_a_discriminator_learns_beside_it(config, tmp_path):
    config.loss.adversarial = 0.1
    task, data = make_task(config, tmp_path)
    params = nn.meta.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    assert set(params["vae"]) == {"decoder"} and set(task.frozen) == {"encoder"}
    arguments = (params, task.frozen, data.held_out[0], jax.random.key(0))
    assert jax.eval_shape(task.loss, *arguments)[0].shape == ()


def test_without_a_vae_it_is_refused(config):
    config.init = ""
    with pytest.raises(ValueError, match=r"config.keep_encoder=True .* give .* as config.init"):
        make_task(config, pathlib.Path())


def test_it_does_not_go_on_with_the_latents_of_another(config, tmp_path):
    make_task(config, tmp_path)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    make_task(config, tmp_path)
    save_vae(tmp_path / "whole", from_settings(VAEConfig, config.vae), 1)
    with pytest.raises(
        ValueError, match=r"config.init=.*whole is not the VAE that the run .* began"
    ):
        make_task(config, tmp_path)
