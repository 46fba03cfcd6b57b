"""The path, what follows from it, and how training draws its levels."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from sora_jax.diffusion.flow import (
    add_noise,
    clean_from_velocity,
    draw_levels,
    shift_levels,
    token_shift,
    velocity_from_clean,
)

SHAPE = (2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def pair():
    """Clean latents and noise, float32 [B, T, h, w, C]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=SHAPE).astype(np.float32), rng.normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def levels():
    """One level a frame, all of them different."""
    return np.linspace(0.1, 1.0, 6, dtype=np.float32).reshape(2, 3)


def test_the_path_runs_from_clean_to_noise(pair):
    clean, noise = pair
    np.testing.assert_array_equal(add_noise(clean, noise, np.zeros((2, 3), np.float32)), clean)
    np.testing.assert_array_equal(add_noise(clean, noise, np.ones((2, 3), np.float32)), noise)


def test_each_frame_has_its_own_level(pair, levels):
    clean, noise = pair
    x = add_noise(clean, noise, levels)
    for b in range(2):
        for frame in range(3):
            t = np.float64(levels[b, frame])
            expected = (1 - t) * clean[b, frame].astype(float) + t * noise[b, frame].astype(float)
            np.testing.assert_allclose(x[b, frame], expected, atol=1e-6)


def test_the_velocity_is_the_derivative_of_the_path(pair, levels):
    clean, noise = pair
    x, slope = jax.jvp(lambda t: add_noise(clean, noise, t), (levels,), (np.ones_like(levels),))
    np.testing.assert_allclose(velocity_from_clean(x, clean, levels), slope, atol=1e-5)
    np.testing.assert_allclose(slope, noise - clean, atol=1e-6)


def test_clean_and_velocity_are_two_forms_of_one_prediction(pair, levels):
    x, guess = pair
    velocity = velocity_from_clean(x, guess, levels)
    np.testing.assert_allclose(clean_from_velocity(x, velocity, levels), guess, atol=1e-5)


def test_the_velocity_stays_finite_at_level_zero(pair):
    clean, noise = pair
    velocity = velocity_from_clean(noise, clean, np.zeros((2, 3), np.float32))
    assert np.isfinite(velocity).all()


@pytest.mark.parametrize("shift", [0.3, 1.0, 1.7, 5.0])
def test_a_shift_reorders_nothing_and_keeps_the_ends(shift):
    t = np.linspace(0, 1, 101, dtype=np.float32)
    shifted = np.asarray(shift_levels(t, shift))
    np.testing.assert_allclose(shifted[[0, -1]], [0, 1], atol=1e-7)
    assert (np.diff(shifted) > 0).all()
    inside = slice(1, -1)
    if shift == 1:
        np.testing.assert_array_equal(shifted, t)
    else:
        assert ((shifted > t) == (shift > 1))[inside].all()


def test_shifts_compose_and_invert():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shift_levels(shift_levels(t, 2.0), 3.0), shift_levels(t, 6.0), 1e-6)
    np.testing.assert_allclose(shift_levels(shift_levels(t, 4.0), 0.25), t, atol=1e-6)


def test_the_shift_divides_the_signal_to_noise_ratio_by_its_square():
    # What a shift means: (1 - t) / t is divided by s, as if s times as much noise were added.
    t = np.linspace(0.1, 0.9, 9)
    shifted = np.asarray(shift_levels(t, 3.0), float)
    np.testing.assert_allclose((1 - shifted) / shifted, (1 - t) / t / 3, rtol=1e-5)


def test_four_times_the_tokens_double_the_shift():
    assert token_shift(100, base=2.0, base_tokens=100) == 2.0
    assert token_shift(400, base=2.0, base_tokens=100) == pytest.approx(4.0)
    assert token_shift(25, base=2.0, base_tokens=100) == pytest.approx(1.0)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 1.6)])
def test_levels_are_logit_normal(mean, std):
    levels = np.asarray(draw_levels(jax.random.key(0), 4096, mean=mean, std=std), float)
    logits = special.logit(levels)
    expected = stats.norm(mean, std)
    assert np.mean(logits) == pytest.approx(mean, abs=0.01 * std)
    assert np.std(logits) == pytest.approx(std, rel=0.01)
    probabilities = np.linspace(0.05, 0.95, 19)
    quantiles = np.quantile(logits, probabilities)
    np.testing.assert_allclose(quantiles, expected.ppf(probabilities), atol=0.01 * std)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_each_batch_has_one_level_in_each_quantile(batch):
    levels = np.asarray(draw_levels(jax.random.key(batch), batch, mean=0.5, std=2.0), float)
    quantiles = stats.norm(0.5, 2.0).cdf(special.logit(levels))
    assert sorted(np.floor(quantiles * batch)) == list(range(batch))


def test_levels_of_a_clip_are_not_tied_to_its_place_in_the_batch():
    keys = jax.random.split(jax.random.key(0), 256)
    levels = jax.vmap(lambda key: draw_levels(key, 4, mean=0.0, std=1.0))(keys)
    order = np.argsort(np.asarray(levels), axis=1)
    shares = [np.mean(order[:, place] == which) for place in range(4) for which in range(4)]
    assert max(np.abs(np.array(shares) - 0.25)) < 0.12
