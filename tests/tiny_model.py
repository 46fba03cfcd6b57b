"""A model folder with random weights, for tests of what samples from one."""

import dataclasses

import jax
import numpy as np
from flax import linen as nn

from sora_jax.language import tokenizer
from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.sizes import abstract_params
from sora_jax.models.text import TextConfig, init_text
from sora_jax.models.vae import VAEConfig, init_vae
from sora_jax.weights.model_folder import Part, save_model

SIZE, FRAMES = (32, 16), 5
PROMPT = "a red circle moves right"
SETTINGS = {
    "fps": 8.0,
    "text_length": 8,
    "shift": 2.0,
    "shift_tokens": 10,
    "latent_limit": 6.0,
    "steps": 2,
    "guidance": 3.0,
    "solver": "euler",
    "size": SIZE,
    "frames": FRAMES,
}
VAE_CONFIG = VAEConfig(4, 4, (1, 2, 2), 1, (True, True), 4, patch=2)
DIT_CONFIG = DiTConfig(32, 2, 2, 64, 4, (1, 2, 2), 16, 16)


def draw_params(init, config):
    """Parameters of usual magnitudes, none of them zero as an init would leave some."""
    shapes = nn.unbox(abstract_params(init, config))
    rng = np.random.default_rng(0)

    def draw(path, x):
        kernel = path[-1].key == "kernel"
        fan_in = np.prod(x.shape[:-1] if x.ndim == 5 else x.shape[-2:-1])
        gain = float("norm" in path[-1].key or path[-1].key == "scale")
        return np.float32(gain + (fan_in**-0.5 if kernel else 0.2) * rng.normal(size=x.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_model(path, **settings):
    """The folder; its latents have unequal means and deviations. `settings` replace SETTINGS."""
    words = tokenizer.train(2 * [PROMPT, "a blue square moves up"], 300)
    text_config = TextConfig(words.vocabulary, 16, 1, 2, 8, 32)
    statistics = {"latent_mean": [0.1, -0.2, 0.3, 0.0], "latent_std": [0.5, 1.2, 0.8, 1.0]}
    parts = {
        "vae": (VAE_CONFIG, init_vae, statistics),
        "dit": (DIT_CONFIG, init_dit, {}),
        "text": (text_config, init_text, {}),
    }
    parts = {
        name: Part({**dataclasses.asdict(config), **more}, draw_params(init, config))
        for name, (config, init, more) in parts.items()
    }
    save_model(path, parts, {**SETTINGS, **settings}, tokenizer=words)
    return path
