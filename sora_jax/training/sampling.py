"""How a model in training will sample, checked before the first step and not at the first save."""

from ml_collections import ConfigDict

from sora_jax.diffusion.settings import ModelSettings
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.vae import VAEConfig
from sora_jax.training.levels import NoiseConfig
from sora_jax.weights.settings import from_settings


def sampling_settings(
    config: ConfigDict,
    fps: float,
    noise: NoiseConfig,
    vae: VAEConfig,
    tokenizer: Tokenizer,
) -> ModelSettings:
    """Settings for the model folder, from `config.sampling` and what the model was trained with.

    Raises:
      ValueError: a default that the model could not sample, or a prompt that it cannot read.
    """
    given = dict(config.sampling)
    prompts = given.pop("prompts")
    trained = {"shift": noise.shift, "shift_tokens": noise.shift_tokens}
    try:
        settings = from_settings(
            ModelSettings,
            {"fps": fps, "text_length": config.tokenizer.length, **trained, **given},
        )
        settings.check_defaults(vae.latent_shape, tokenizer.check_length)
        for prompt in prompts:
            tokenizer.check_length(prompt, settings.text_length)
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.sampling: {error}") from error
    return settings
