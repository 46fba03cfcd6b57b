"""Which latent frames are given, in training and when prompting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion.conditioning import (
    PATTERNS,
    Given,
    draw_frame_levels,
    lay,
    staircase,
)
from sora_jax.diffusion.flow import shift_levels

FRAMES, SHIFT = 5, 3.0


def draw(weights, count=2000, frames=FRAMES, t=None):
    t = np.linspace(0.05, 1.0, count, dtype=np.float32) if t is None else t
    return t, np.asarray(draw_frame_levels(jax.random.key(0), t, frames, weights, SHIFT))


def test_patterns_come_as_often_as_they_weigh():
    _, levels = draw({"none": 3.0, "first_frame": 1.0}, 4000)
    assert levels.shape == (4000, FRAMES)
    assert np.mean(levels[:, 0] == 0) == pytest.approx(0.25, abs=0.03)
    assert (levels[:, 1:] > 0).all()


def is_run(given):
    """Whether the given frames of each clip lie side by side."""
    return (np.abs(np.diff(np.pad(given, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) <= 2).all()


@pytest.mark.parametrize("frames", [2, 3, FRAMES, 9])
@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"staircase", "soft_hint", "hidden"}))
def test_a_frame_is_given_or_at_its_clips_level(name, frames):
    t, levels = draw({name: 1.0}, frames=frames)
    given = levels == 0
    np.testing.assert_array_equal(levels, np.where(given, 0, t[:, None]))
    assert not given.all(axis=1).any(), "nothing is left to learn"
    counts = set(given.sum(axis=1))
    every = set(range(1, frames))
    if name == "none":
        assert counts == {0}
    elif name == "first_frame":
        assert counts == {1} and given[:, 0].all()
    elif name == "prefix":
        assert counts == every and given[:, 0].all() and is_run(given)
    elif name == "suffix":
        assert counts == every and given[:, -1].all() and is_run(given)
    elif name == "keyframes":
        assert counts == every and (given.mean(axis=0) > 0.1).all()
    elif frames > 2:
        assert counts == every - {1} and given[:, [0, -1]].all() and is_run(~given)


def test_soft_hints_stay_below_the_level_of_the_rest():
    _, levels = draw({"soft_hint": 1.0}, t=np.full(2000, 0.9, np.float32))
    hinted = levels < 0.9
    assert (levels > 0).all() and hinted.any(axis=1).all() and (~hinted).any(axis=1).all()
    ceilings = np.where(hinted, levels, np.nan)
    highest = 0.5 * SHIFT / (1 + 0.5 * (SHIFT - 1))  # half of the path
    assert np.nanmin(ceilings) < 0.05 and highest - 0.05 < np.nanmax(ceilings) <= highest + 1e-6
    # All of a clip's hints are equally rough.
    np.testing.assert_array_equal(np.nanmin(ceilings, axis=1), np.nanmax(ceilings, axis=1))


def test_hidden_frames_are_noise_and_the_rest_at_its_clips_level():
    t, levels = draw({"hidden": 1.0})
    hidden = levels == 1
    np.testing.assert_array_equal(levels, np.where(hidden, 1, t[:, None]))
    assert set(hidden[:-1].sum(axis=1)) == set(range(1, FRAMES))
    assert (hidden.mean(axis=0) > 0.1).all()


def test_stairs_rise_with_time_and_reach_every_stage():
    _, levels = draw({"staircase": 1.0})
    assert (np.diff(levels, axis=1) >= 0).all() and (levels[:, -1] > 0).all()
    assert 0.05 < np.mean(levels[:, 0] > 0.5) < 0.5, "setting off from noise"
    assert np.mean(levels[:, -2] == 0.0) > 0.02, "arriving at clean frames"
    position = levels / (SHIFT - (SHIFT - 1) * levels)  # the inverse of the shift
    inside = (position > 0) & (position < 1)
    heights = np.diff(position, axis=1)[inside[:, 1:] & inside[:, :-1]]
    every = 1 / np.arange(2, FRAMES + 1)
    nearest = np.abs(heights[:, None] - every).min(axis=1)
    assert (nearest < 1e-4).mean() > 0.99
    assert all((np.abs(heights - height) < 1e-4).any() for height in every)


def test_one_stair_down_is_the_next_windows_stairs():
    for kept in (0, 1):
        high = np.asarray(staircase(5, kept, 0.0, 1.0))
        low = np.asarray(staircase(5, kept, -1 / (5 - kept), 1.0))
        np.testing.assert_allclose(low[1:], high[:-1], atol=1e-6)
        assert (low[: kept + 1] == 0).all() and low[kept + 1] > 0 and high[-1] == 1
        assert (high[:kept] == 0).all()
        shifted = staircase(5, kept, 0.0, SHIFT)
        np.testing.assert_allclose(shifted, shift_levels(jnp.float32(high), SHIFT), atol=1e-6)


def test_nothing_of_an_image_is_given():
    t, levels = draw({name: 1.0 for name in PATTERNS}, frames=1)
    np.testing.assert_array_equal(levels, t[:, None])


def test_weights_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match=f"'last_frame' is unknown.*{PATTERNS[0]}"):
        draw({"none": 0.5, "last_frame": 0.5})
    with pytest.raises(ValueError, match="positive sum"):
        draw({"none": 0.0})
    with pytest.raises(ValueError, match="not be negative"):
        draw({"none": 1.0, "prefix": -0.5})
    with pytest.raises(ValueError, match="not be negative"):
        draw({"none": float("nan")})


SHAPE = (4, 2, 3, 1)


def test_pieces_lie_where_they_are_put():
    first, rest = np.full((1, 2, 3, 1), 2.0), np.full((2, 2, 3, 1), 3.0)
    known, strengths = lay(SHAPE, [Given(rest, 2, (0.2, 0.4)), Given(first, 0)])
    np.testing.assert_array_equal(known[:, 0, 0, 0], [2, 0, 3, 3])
    np.testing.assert_allclose(strengths, [0, 1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([Given(np.zeros((1, 3, 3, 1)), 0)], "encode them at the clip's own size"),
        ([Given(np.zeros((2, 2, 3, 1)), 3)], "2 latent frames from 3 on .* clip's 4"),
        ([Given(np.zeros((1, 2, 3, 1)), -1)], "from -1 on"),
        ([Given(np.zeros((2, 2, 3, 1)), 0), Given(np.zeros((1, 2, 3, 1)), 1)], "1 is given twice"),
        ([Given(np.zeros((1, 2, 3, 1)), 0, 1.5)], "strength 1.5 must lie in 0"),
        ([Given(np.zeros((1, 2, 3, 1)), 0, float("nan"))], "strength nan"),
    ],
    ids=["size", "end", "start", "twice", "strength", "nan"],
)
def test_pieces_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        lay(SHAPE, given)
