"""Guidance by the prompt and by given frames, in an interval, with the spread restored."""

import numpy as np
import pytest

from sora_jax.diffusion.flow import shift_levels
from sora_jax.diffusion.guidance import (
    Guidance,
    Told,
    as_scales,
    guide,
    is_inside,
    restore_spread,
    tellings,
)

SHAPE = (2, 3, 2, 2, 4)


@pytest.fixture(scope="module")
def predictions():
    return np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)


def guided(predictions, guidance, *, text=True, given=False, t=0.5):
    told = tellings(text=text, given=given)
    t = np.broadcast_to(np.float32(t), SHAPE[:2])
    return np.asarray(guide(predictions[: len(told)], told, t, as_scales(guidance, 1.0)))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_by_the_prompt_goes_on_from_the_empty_one(predictions, scale):
    empty, full = predictions[:2]
    expected = (1 - scale) * empty + scale * full
    np.testing.assert_allclose(guided(predictions, Guidance(scale)), expected, atol=1e-5)


def test_guidance_by_frames_is_apart_from_that_by_the_prompt(predictions):
    nothing, frames, full = predictions
    result = guided(predictions, Guidance(3.0, 2.0), given=True)
    expected = nothing + 2 * (frames - nothing) + 3 * (full - frames)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    result = guided(predictions, Guidance(1.0, 2.0), text=False, given=True)
    np.testing.assert_allclose(result, 2 * frames - nothing, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ({"text": False, "given": False}, [(True, True)]),
        ({"text": True, "given": False}, [(False, True), (True, True)]),
        ({"text": False, "given": True}, [(True, False), (True, True)]),
        ({"text": True, "given": True}, [(False, False), (False, True), (True, True)]),
    ],
)
def test_the_network_is_told_one_more_thing_each_time(kinds, expected):
    assert tellings(**kinds) == tuple(Told(*one) for one in expected)


def test_a_frame_outside_the_interval_is_not_guided(predictions):
    t = np.float32([[0.1, 0.5, 0.9], [0.5, 0.5, 0.0]])
    result = guided(predictions, Guidance(3.0, interval=(0.2, 0.8)), t=t)
    empty, full = predictions[:2]
    inside = ((t > 0.2) & (t < 0.8))[..., None, None, None]
    expected = np.where(inside, empty + 3 * (full - empty), full)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_the_interval_lies_on_the_path_before_its_shift():
    scales = as_scales(Guidance(2.0, interval=(0.25, 1.0)), 3.0)
    assert float(scales.low) == pytest.approx(3 * 0.25 / (1 + 2 * 0.25))
    assert float(scales.high) == 1.0


def test_a_step_from_the_edge_of_the_interval_is_guided_and_a_clean_frame_is_not():
    scales = as_scales(Guidance(3.0, interval=(0.2, 0.8)), 3.0)
    edges = shift_levels(np.float32([0.8, 0.6, 0.2, 0.0]), 3.0)
    np.testing.assert_array_equal(is_inside(edges, scales), [True, True, True, False])
    whole = as_scales(Guidance(3.0), 3.0)
    np.testing.assert_array_equal(is_inside(edges, whole), [True, True, True, False])


def test_the_spread_of_each_clip_is_restored_where_it_is_guided(predictions):
    plain, wide = predictions[0], 5 * predictions[1] + 1
    t = np.float32([[0.0, 0.5, 0.5], [0.5, 0.5, 0.9]])
    inside = np.array([[False, True, True], [True, True, False]])

    def restore(amount):
        scales = as_scales(Guidance(3.0, interval=(0.0, 0.8), rescale=amount), 1.0)
        return np.asarray(restore_spread(wide, plain, t, scales))

    np.testing.assert_array_equal(restore(0.0), wide)
    for amount in (0.5, 1.0):
        result = restore(amount)
        np.testing.assert_array_equal(result[~inside], wide[~inside])
        for clip, mask in enumerate(inside):
            old, new = np.std(wide[clip][mask]), np.std(plain[clip][mask])
            expected = (1 - amount) * old + amount * new
            assert np.std(result[clip][mask]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": -1.0}, "guidance -1.0 is out of range; use 1 to 20"),
        ({"text_low": 1e4}, "guidance at low noise 10000.0 is out of range"),
        ({"text_low": "3,4"}, "are no guidance"),
        ({"given": float("inf")}, "guidance by given frames inf is out of range"),
        ({"interval": (0.8, 0.2)}, r"interval of guidance \(0.8, 0.2\) .* the lower one first"),
        ({"interval": (0.0, 1.5)}, "must be two shares"),
        ({"interval": (0.0,)}, "must be two shares"),
        ({"interval": 0.5}, "are no guidance: three numbers, and an interval of two"),
        ({"text": (3.0, 2.0)}, "are no guidance"),
        ({"rescale": 2.0}, "rescaling of guidance 2.0 must lie in 0 to 1"),
    ],
)
def test_numbers_that_make_no_sense_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**fields)
