"""Given frames pass into made ones without a step."""

import numpy as np
import pytest

from sora_jax.seams import FADE, dissolve, fade_in, fade_out, jump


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


def test_a_dissolve_has_the_share_of_each_that_is_asked_for():
    first, second = (np.full((3, 2, 2, 3), value, np.uint8) for value in (10, 50))
    mixed = dissolve(first, second, np.array([0, 0.25, 1]))
    np.testing.assert_array_equal(mixed[:, 0, 0, 0], [10, 20, 50])


def test_a_seam_is_measured_against_the_other_changes():
    video = np.zeros((9, 4, 4, 3), np.uint8)
    video += (np.arange(9) * 10)[:, None, None, None].astype(np.uint8)
    assert jump(video, 4) == pytest.approx(1.0)
    video[4:] += 20
    assert jump(video, 4) == pytest.approx(3.0)
    assert jump(video, 5) == pytest.approx(1.0)
