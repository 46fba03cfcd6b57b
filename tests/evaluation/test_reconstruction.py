"""PSNR and SSIM are scikit-image's; change is counted frame by frame."""

import numpy as np
import pytest
from skimage import metrics

from sora_jax.evaluation.reconstruction import change, psnr, ssim


@pytest.fixture(scope="module")
def clips():
    """Pairs of clips in [-1, 1]: smooth pictures without and with noise, little or much."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :32] / 8.0
    picture = np.stack([np.sin(x + y), np.cos(2 * x), np.sin(3 * y) * np.cos(x)], axis=-1)
    clean = np.stack(
        [np.stack([np.roll(picture, f + 3 * b, axis=1) for f in range(3)]) for b in range(2)]
    )
    noise = rng.normal(size=clean.shape) * np.array([0.03, 0.4]).reshape(2, 1, 1, 1, 1)
    noisy = np.clip(clean + noise, -1, 1)
    return clean.astype(np.float32), noisy.astype(np.float32)


def test_psnr(clips):
    expected = [metrics.peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(*clips)]
    assert expected[0] > expected[1] + 10
    np.testing.assert_allclose(psnr(*clips), expected, rtol=1e-5)


def test_ssim(clips):
    expected = [
        np.mean(
            [
                metrics.structural_similarity(
                    # Of brightness as it is stored, from 0 for black.
                    127.5 * (p.astype(float) + 1),
                    127.5 * (q.astype(float) + 1),
                    data_range=255,
                    channel_axis=-1,
                    gaussian_weights=True,
                    sigma=1.5,
                    use_sample_covariance=False,
                )
                for p, q in zip(x, y)
            ]
        )
        for x, y in zip(*clips)
    ]
    assert expected[0] > 0.9 > 0.8 > expected[1]
    np.testing.assert_allclose(ssim(*clips), expected, atol=1e-4)


def test_a_clip_equals_itself(clips):
    np.testing.assert_allclose(ssim(clips[0], clips[0]), 1, atol=1e-5)
    assert np.isfinite(psnr(clips[0], clips[0])).all()


def test_change_counts_what_moves_and_nothing_else(clips):
    clean, noisy = clips
    expected = []
    for x, y in zip(clean, noisy):
        totals = [sum(np.abs(v[i + 1] - v[i]).sum() for i in range(len(v) - 1)) for v in (x, y)]
        expected.append(totals[1] / totals[0])
    assert expected[1] > expected[0] > 1
    np.testing.assert_allclose(change(clean, noisy), expected, rtol=1e-5)
    np.testing.assert_allclose(change(clean, clean / 2 + 0.3), 0.5, rtol=1e-4)
    assert np.isnan(change(clean[:, :1].repeat(3, 1), clean)).all()
    assert np.isnan(change(clean[:, :1], noisy[:, :1])).all()
