"""Model folders of tiny random networks, for tests that need one without training it."""

import dataclasses

import jax
import numpy as np
from flax import linen as nn

from sora_jax.language.tokenizer import train
from sora_jax.models.text import TextConfig, init_text
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.model_folder import Part, save_model

VAE = VAEConfig(
    encoder_width=8,
    decoder_width=4,
    multipliers=(1, 2),
    blocks=1,
    temporal=(True,),
    latent_channels=4,
    patch=4,
)
MEAN, STD = np.float32([0.1, -0.2, 0.3, 0.0]), np.float32([0.5, 0.2, 0.4, 0.1])
# Another width than that of the config `tiny_dit`.
TEXT = TextConfig(vocabulary=300, width=24, layers=1, heads=2, head_width=8, mlp_width=16)
WORDS = ("a red circle moves right", "a blue square moves left", "a small green triangle")


def randomised(init, config, seed=0):
    """Parameters none of which is zero or one, as an init would leave some."""
    shapes = nn.meta.unbox(jax.eval_shape(lambda key: init(config, key), jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), shapes)


def save_vae(folder):
    """Writes a VAE and returns its parameters."""
    params = randomised(init_vae, VAE)
    settings = {
        **dataclasses.asdict(VAE),
        "latent_mean": MEAN.tolist(),
        "latent_std": STD.tolist(),
    }
    save_model(folder, {"vae": Part(settings, params)}, {"fps": 8.0})
    return params


def save_both(tmp_path_factory):
    """Model folders of a VAE and of a text encoder."""
    vae, text = tmp_path_factory.mktemp("vae"), tmp_path_factory.mktemp("text")
    save_vae(vae)
    save_text(text)
    return vae, text


def save_text(folder, seed=0, vocabulary=TEXT.vocabulary):
    """Writes a text encoder with a tokenizer of some 300 ids."""
    config = dataclasses.replace(TEXT, vocabulary=vocabulary)
    part = Part(dataclasses.asdict(config), randomised(init_text, config, seed))
    save_model(folder, {"text": part}, {}, tokenizer=train(WORDS * 2, TEXT.vocabulary))
