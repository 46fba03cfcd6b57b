"""Tiles: they cover everything once, and one that covers all changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.vae_tiles import in_tiles


def enlarge(x, carry):
    """Each number becomes a square of two by two; the carry counts the calls."""
    return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), (0 if carry is None else carry) + 1


def draw(height, width):
    return np.random.default_rng(0).normal(size=(1, 2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (9, 23), (13, 4), (40, 5)])
@pytest.mark.parametrize("overlap", [1, 3, 4])
def test_what_sees_no_neighbours_is_the_same_in_tiles(size, overlap):
    x = draw(*size)
    y, _ = in_tiles(enlarge, x, None, tile=8, overlap=overlap, taken=1, given=2)
    np.testing.assert_allclose(y, enlarge(x, None)[0], atol=1e-6)


def test_a_result_may_be_smaller():
    x = draw(20, 24)

    def shrink(x, carry):
        return x[:, :, ::2, ::2], carry

    y, _ = in_tiles(shrink, x, None, tile=4, overlap=1, taken=2, given=1)
    np.testing.assert_allclose(y, x[:, :, ::2, ::2], atol=1e-6)


def test_every_tile_has_its_own_carry():
    def total(x, carry):
        carry = x + (0 if carry is None else carry)
        return carry, carry

    x, options = draw(11, 9), {"tile": 6, "overlap": 2, "taken": 1, "given": 1}
    y, carry = in_tiles(total, x, None, **options)
    y, carry = in_tiles(total, 2 * x, carry, **options)
    np.testing.assert_allclose(y, 3 * x, atol=1e-5)


def test_weights_go_linearly_over_the_overlap():
    """A tile says which it is, by its first pixel; two of them overlap by half."""
    x = np.broadcast_to(np.arange(12.0, dtype=np.float32).reshape(1, 1, 1, 12, 1), (1, 1, 8, 12, 1))

    def number(x, carry):
        return jnp.broadcast_to(x[:, :, :1, :1], x.shape), carry

    y, _ = in_tiles(number, x, None, tile=8, overlap=4, taken=1, given=1)
    np.testing.assert_allclose(y[0, 0, 3, :, 0], [0, 0, 0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4, 4, 4])


@pytest.mark.parametrize("overlap", [0, 5])
def test_an_overlap_that_does_not_fit_is_refused(overlap):
    with pytest.raises(ValueError, match=f"tiles of 8 .* overlap by {overlap}: .* 1 to 4"):
        in_tiles(enlarge, draw(9, 9), None, tile=8, overlap=overlap, taken=1, given=2)
