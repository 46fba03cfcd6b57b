"""Given frames pass into made ones without a step."""

import numpy as np

from sora_jax.seams import FADE, fade_in, fade_out


def test_what_the_vae_got_wrong_fades():
    made = np.full((7, 1, 1, 3), 100, np.uint8)
    shown, given = np.full((1, 1, 3), 60, np.uint8), np.full((1, 1, 3), 80, np.uint8)
    expected = 100 + 20 * np.array([0.8, 0.6, 0.4, 0.2, 0, 0, 0])
    assert FADE == 4
    np.testing.assert_array_equal(fade_in(made, shown, given)[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(fade_out(made, shown, given)[::-1, 0, 0, 0], expected)


def test_a_frame_that_is_shown_as_it_is_changes_nothing():
    made = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8)
    shown = made[:, 0]
    np.testing.assert_array_equal(fade_in(made, shown, shown[0])[0], made[0])


def test_pixels_stay_in_range():
    made = np.uint8([[[[250, 5, 0]]], [[[250, 5, 0]]]])
    shown, given = np.uint8([[[100, 100, 0]]]), np.uint8([[[200, 0, 0]]])
    np.testing.assert_array_equal(fade_in(made, shown, given)[0, 0, 0], [255, 0, 0])
