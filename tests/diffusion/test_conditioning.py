"""Which frames training holds clean."""

import jax
import numpy as np
import pytest

from sora_jax.diffusion.conditioning import PATTERNS, draw_held, levels_of


def test_patterns_come_as_often_as_they_weigh():
    held = np.asarray(draw_held(jax.random.key(0), 4000, 5, {"none": 3.0, "first_frame": 1.0}))
    assert held.shape == (4000, 5) and held.dtype == bool
    assert np.mean(held[:, 0]) == pytest.approx(0.25, abs=0.03)
    assert not held[:, 1:].any()


@pytest.mark.parametrize(("weights", "share"), [({"none": 1}, 0), ({"first_frame": 2}, 1)])
def test_a_lone_pattern_is_always_drawn(weights, share):
    held = np.asarray(draw_held(jax.random.key(0), 50, 3, weights))
    assert np.mean(held[:, 0]) == share


def test_an_image_is_never_held():
    assert not np.asarray(draw_held(jax.random.key(0), 50, 1, {"first_frame": 1.0})).any()


def test_weights_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=f"'last_frame' is unknown.*{PATTERNS[0]}"):
        draw_held(jax.random.key(0), 2, 3, {"none": 0.5, "last_frame": 0.5})
    with pytest.raises(ValueError, match="positive sum"):
        draw_held(jax.random.key(0), 2, 3, {"none": 0.0})


def test_held_frames_are_at_level_zero_and_others_at_their_clips():
    held = np.array([[True, False, False], [False, False, False]])
    levels = np.asarray(levels_of(np.float32([0.3, 0.8]), held))
    np.testing.assert_array_equal(levels, np.float32([[0, 0.3, 0.3], [0.8, 0.8, 0.8]]))
