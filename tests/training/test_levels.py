"""Which noise levels a config may ask training to draw."""

import pytest

from sora_jax.training.levels import NoiseConfig


@pytest.mark.parametrize("name", ["std", "shift", "shift_tokens", "floor"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_noise_that_cannot_be_is_refused(name, value):
    with pytest.raises(ValueError, match=f"config.noise.{name}={value} must be positive, such as"):
        NoiseConfig(**{name: value})


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
