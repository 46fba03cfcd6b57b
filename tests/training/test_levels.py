"""Which noise levels a config may ask training to draw."""

import pytest

from sora_jax.training.levels import NoiseConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"std": float("inf")}, "config.noise.std=inf must be positive, such as 1.0"),
        ({"floor": float("inf")}, "config.noise.floor=inf must be positive"),
        ({"mean": float("nan")}, "config.noise.mean=nan must be a number, such as 0.0"),
    ],
)
def test_noise_that_is_not_finite_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NoiseConfig(**settings)
