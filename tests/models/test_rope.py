"""Rotary positions: only differences of positions count, along each axis on its own."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.rope import rope_angles, rotate, split_channels


def grid(frames=3, rows=2, columns=4, offset=(0, 0, 0)):
    sizes = zip((frames, rows, columns), offset)
    return tuple(start + jnp.arange(size, dtype=jnp.float32) for size, start in sizes)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "width, split", [(128, (44, 42, 42)), (16, (8, 4, 4)), (24, (8, 8, 8)), (32, (12, 10, 10))]
)
def test_split_of_channels_is_wans(width, split):
    assert split_channels(width) == split


@pytest.mark.parametrize("width", range(2, 130, 2))
def test_split_of_channels_is_even_and_whole(width):
    split = split_channels(width)
    assert sum(split) == width
    assert all(channels % 2 == 0 for channels in split)


def test_angles_are_position_times_rate():
    width = 32
    angles = np.asarray(rope_angles(grid(), width))
    assert angles.shape == (3, 2, 4, width // 2)
    for place in np.ndindex(3, 2, 4):
        expected = []
        for position, channels in zip(place, (12, 10, 10)):
            expected += [position * 10_000.0 ** (-2 * i / channels) for i in range(channels // 2)]
        np.testing.assert_allclose(angles[place], expected, rtol=1e-5)


def scores(offset_of_queries, offset_of_keys, width=24):
    """Dot products of every query with every key of a grid: [N, N] for each of two heads."""
    q, k = draw(1, 24, 2, width), draw(1, 24, 2, width, seed=1)
    q = rotate(q, rope_angles(grid(offset=offset_of_queries), width).reshape(24, -1))
    k = rotate(k, rope_angles(grid(offset=offset_of_keys), width).reshape(24, -1))
    return np.einsum("bnkd,bmkd->bknm", q, k)


@pytest.mark.parametrize("offset", [(5, 0, 0), (0, 7, 0), (0, 0, 3), (2, 11, 6)])
def test_scores_depend_on_differences_of_positions_only(offset):
    np.testing.assert_allclose(scores(offset, offset), scores((0, 0, 0), (0, 0, 0)), atol=2e-5)


@pytest.mark.parametrize("offset", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_scores_depend_on_differences_along_each_axis(offset):
    assert np.abs(scores((0, 0, 0), offset) - scores((0, 0, 0), (0, 0, 0))).max() > 0.1


def test_rotation_is_of_complex_pairs_of_the_two_halves():
    x, angles = draw(2, 5, 3, 8), draw(5, 4, seed=1)
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[None, :, None]
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    np.testing.assert_allclose(rotate(x, angles), expected, atol=1e-6)


def test_rotation_computes_in_float32_and_keeps_the_dtype():
    x, angles = jnp.asarray(draw(1, 5, 1, 8), jnp.bfloat16), 100 * draw(5, 4, seed=1)
    y = rotate(x, angles)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, rotate(x.astype(jnp.float32), angles).astype(jnp.bfloat16))


def test_positions_may_be_fractional():
    whole = rope_angles(grid(), 16)
    halves = rope_angles(tuple(p / 2 for p in grid()), 16)
    np.testing.assert_allclose(halves, whole / 2, rtol=1e-6)
