"""Which steps of a schedule each of two networks takes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sora_jax.diffusion.experts import inside, levels_of, split
from sora_jax.diffusion.flow import draw_levels, level_share, shift_levels
from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.diffusion.solvers import schedule

GUIDANCE = Guidance(4.0, 2.0, (0.1, 0.9), 0.5, 3.0)
SETTINGS = ModelSettings(
    16.0, 8, 5.0, None, None, 20, GUIDANCE, "unipc", (48, 32), 9, level_grid=1000, boundary=0.875
)


@pytest.mark.parametrize("shift", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("start", [1.0, 0.95, 0.1])
@pytest.mark.parametrize("boundary", [0.3, 0.875, 0.9])
def test_each_step_has_the_network_of_its_level(shift, start, boundary):
    levels = schedule(20, shift, start, grid=1000)
    settings = dataclasses.replace(SETTINGS, boundary=boundary)
    asked = []
    for stretch in split(levels, settings):
        ends = itertools.pairwise(stretch.levels)
        asked += [(stretch.part, *pair, stretch.guidance.text) for pair in ends]
    expected = []
    for t, s in itertools.pairwise(levels):
        high = int(np.float32(t) * np.float32(1000)) >= 1000 * boundary
        expected.append(("dit", t, s, 4.0) if high else ("dit_low", t, s, 3.0))
    assert asked == expected


def test_a_level_at_the_boundary_is_of_high_noise():
    levels = np.float32([0.8757, 0.875, 0.8749, 0.0])
    parts = {stretch.part: len(stretch.levels) - 1 for stretch in split(levels, SETTINGS)}
    assert parts == {"dit": 2, "dit_low": 1}
    exact = dataclasses.replace(SETTINGS, level_grid=None, boundary=0.8757)
    assert len(split(levels, exact)[0].levels) == 2


def test_one_network_takes_all():
    guidance = dataclasses.replace(GUIDANCE, text_low=None)
    settings = dataclasses.replace(SETTINGS, boundary=None, guidance=guidance)
    for levels in (schedule(20, 5.0, grid=1000), np.ones((4, 3), np.float32)):
        (only,) = split(levels, settings)
        assert (only.part, only.guidance) == ("dit", guidance)
        assert only.levels is levels


def test_the_rest_of_guidance_is_the_same_for_both():
    high, low = split(schedule(20, 5.0, grid=1000), SETTINGS)
    assert high.guidance == GUIDANCE
    assert low.guidance == Guidance(3.0, 2.0, (0.1, 0.9), 0.5)
    assert SETTINGS.override(guidance=5.0).guidance == Guidance(5.0, 2.0, (0.1, 0.9), 0.5)


def test_settings_have_a_boundary_or_one_guidance():
    with pytest.raises(ValueError, match="boundary 875 must be a level between 0 and 1"):
        dataclasses.replace(SETTINGS, boundary=875)
    with pytest.raises(ValueError, match=r"guidance 3.0 at low noise is for models of two"):
        dataclasses.replace(SETTINGS, boundary=None)


@pytest.mark.parametrize("grid", [1000, None])
@pytest.mark.parametrize("boundary", [0.3, 0.58, 0.875, 0.9, 0.9985])
def test_a_range_ends_where_the_other_network_is_asked(boundary, grid):
    settings = dataclasses.replace(SETTINGS, boundary=boundary, level_grid=grid)
    for part in ("dit", "dit_low"):
        for level in inside(*levels_of(part, boundary, grid)):
            stretches = split(np.float32([level, 0.0]), settings)
            assert [stretch.part for stretch in stretches] == [part], (part, level)
    highest, lowest = (inside(*levels_of(part, boundary, grid)) for part in ("dit_low", "dit"))
    assert 0 < lowest[0] - highest[1] < 3e-7 and (highest[0], lowest[1]) == (0, 1)


@pytest.mark.parametrize("part", ["dit", "dit_low"])
@pytest.mark.parametrize(("boundary", "shift", "mean"), [(0.875, 12.0, 0.0), (0.9, 5.0, 0.3)])
def test_training_draws_what_would_be_left_of_all_levels(part, boundary, shift, mean):
    """That is those of one network, of so many that are drawn for both."""
    between, how = levels_of(part, boundary, 1000), {"mean": mean, "std": 1.2}
    low, high = (level_share(level, shift=shift, **how) for level in between)
    drawn = draw_levels(jax.random.key(0), 4096, shares=(low, high), **how)
    drawn = jnp.clip(shift_levels(drawn, shift), *inside(*between))
    every = special.expit(np.random.default_rng(0).normal(mean, 1.2, 20_000))
    every = shift * every / (1 + (shift - 1) * every)
    left = every[(every >= boundary) == (part == "dit")]
    assert abs(len(left) / len(every) - (high - low)) < 0.01
    assert stats.ks_2samp(drawn, left).pvalue > 0.01
