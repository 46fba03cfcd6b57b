"""Losses against slow references in float64."""

import jax
import numpy as np
import pytest
from scipy import stats

from sora_jax.diffusion.flow import add_noise, clean_from_velocity
from sora_jax.training.losses import change_loss, flow_loss, gradient_loss, hinge_loss, kl_loss

SHAPE = (3, 4, 2, 3, 5)
LEVELS = np.float32([[0.5, 0.5, 0.5, 0.5], [0.0, 0.9, 0.9, 0.9], [0.01, 0.3, 0.01, 1.0]])
HELD = LEVELS == 0
FLOOR = 0.05


@pytest.fixture(scope="module")
def arrays():
    """A prediction, clean latents and noise."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("clean", [True, False])
def test_flow_loss_is_the_weighted_mean_of_the_frames_that_are_not_held(arrays, clean):
    prediction, target, _ = arrays
    expected = []
    for b in range(SHAPE[0]):
        terms = []
        for frame in range(SHAPE[1]):
            if HELD[b, frame]:
                continue
            error = prediction[b, frame].astype(float) - target[b, frame]
            weight = 1 / max(float(LEVELS[b, frame]), FLOOR) ** 2 if clean else 1.0
            terms.append(weight * np.mean(error**2))
        expected.append(np.mean(terms))
    loss = flow_loss(prediction, target, LEVELS, HELD, clean=clean, floor=FLOOR)
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_held_frames_carry_no_loss(arrays):
    prediction, target, _ = arrays

    def total(prediction):
        return flow_loss(prediction, target, LEVELS, HELD, clean=True, floor=FLOOR).sum()

    gradient = np.asarray(jax.grad(total)(prediction))
    assert not gradient[HELD].any()
    assert np.abs(gradient[~HELD]).min() > 0


def test_a_clip_of_held_frames_has_no_loss(arrays):
    prediction, target, _ = arrays
    held = np.ones(SHAPE[:2], bool)
    loss = flow_loss(prediction, target, np.zeros_like(LEVELS), held, clean=True, floor=FLOOR)
    np.testing.assert_array_equal(loss, np.zeros(3))


def test_the_loss_of_a_clean_prediction_is_that_of_its_velocity(arrays):
    velocity, clean, noise = arrays
    levels = np.maximum(LEVELS, FLOOR)
    held = np.zeros_like(HELD)
    prediction = clean_from_velocity(add_noise(clean, noise, levels), velocity, levels)
    np.testing.assert_allclose(
        flow_loss(prediction, clean, levels, held, clean=True, floor=FLOOR),
        flow_loss(velocity, noise - clean, levels, held, clean=False, floor=FLOOR),
        rtol=1e-4,
    )


def test_half_precision_is_reduced_in_float32():
    # The sum of these squares is far beyond the range of float16.
    prediction = np.full((1, 1, 64, 64, 4), 100, np.float16)
    levels, held = np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
    loss = flow_loss(prediction, np.zeros_like(prediction), levels, held, clean=True, floor=FLOOR)
    np.testing.assert_allclose(loss, [1e4])


def test_kl_is_the_integral():
    mean, logvar = np.float32([0.0, 1.5, -0.3]), np.float32([0.0, -2.0, 0.7])
    x = np.linspace(-15, 15, 100_001)
    q = stats.norm(0, 1)
    expected = []
    for m, v in zip(mean.astype(float), logvar.astype(float)):
        p = stats.norm(m, np.exp(v / 2))
        expected.append(np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x))
    assert expected[0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(kl_loss(mean, logvar), np.mean(expected), rtol=1e-5)


def test_hinge_loss_ends_at_the_margin():
    real, fake = np.float32([2.0, 1.0, 0.5, -1.0]), np.float32([-3.0, -1.0, 0.0])
    assert float(hinge_loss(real, fake)) == pytest.approx((0.5 + 2.0) / 4 + 1.0 / 3)
    pulls = jax.grad(hinge_loss, (0, 1))(np.float32([2.0, 0.5]), np.float32([-2.0, -0.5]))
    np.testing.assert_allclose(pulls, [[0.0, -0.5], [0.0, 0.5]])


def gradient_reference(x, y, scales):
    difference = x.astype(float) - y
    total = 0.0
    for scale in range(scales):
        if scale:
            difference = (
                difference[:, :, ::2, ::2]
                + difference[:, :, 1::2, ::2]
                + difference[:, :, ::2, 1::2]
                + difference[:, :, 1::2, 1::2]
            ) / 4
        for earlier, later in (
            (difference[:, :-1], difference[:, 1:]),
            (difference[:, :, :-1], difference[:, :, 1:]),
            (difference[:, :, :, :-1], difference[:, :, :, 1:]),
        ):
            if later.size:
                total += np.abs(later - earlier).mean()
    return total / scales


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("scales", [1, 3])
def test_gradient_loss(frames, scales):
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 2, frames, 8, 12, 3)).astype(np.float32)
    expected = gradient_reference(x, y, scales)
    np.testing.assert_allclose(gradient_loss(x, y, scales), expected, rtol=1e-5)


def test_gradient_loss_ignores_brightness_and_sees_an_edge():
    x = np.zeros((1, 2, 8, 8, 3), np.float32)
    edge = x.copy()
    edge[:, :, :, 4:] = 1
    assert float(gradient_loss(x, x + 0.5)) == 0
    assert float(gradient_loss(x, edge)) > 0.05


def test_change_loss():
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 2, 3, 8, 12, 3)).astype(np.float32)
    moves = [(y[:, f + 1] - y[:, f]) - (x[:, f + 1] - x[:, f]) for f in range(2)]
    np.testing.assert_allclose(change_loss(x, y), np.abs(moves).mean(), rtol=1e-5)
    assert float(change_loss(x, x + 0.5)) == pytest.approx(0, abs=1e-7)  # the same in every frame
    assert float(change_loss(x[:, :1], y[:, :1])) == 0
