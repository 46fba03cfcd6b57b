"""Solvers converge to the exact flow at their order; guidance; frames that are given stay."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.diffusion.solvers import (
    Last,
    deis_step,
    euler_step,
    heun_step,
    limit_range,
    schedule,
    set_off,
    solve,
    unipc_step,
)

SHAPE = (2, 3, 2, 2, 4)
MEAN, DEVIATION = 0.7, 0.4
GOLDEN = pathlib.Path(__file__).parents[1] / "weights" / "golden" / "unipc.npz"
STEPS = [euler_step, heun_step, deis_step, unipc_step]


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def known():
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


def posterior_mean(x, t):
    """The best clean prediction where latents are Gaussian: E[x_0 | x_t] in closed form."""
    t = t[..., None, None, None]
    variance = ((1 - t) * DEVIATION) ** 2 + t**2
    return MEAN + (1 - t) * DEVIATION**2 / variance * (x - (1 - t) * MEAN)


def exact(noise):
    """Where the flow of these Gaussians takes noise, float64: their marginals stay Gaussian, so
    it only shifts and scales."""
    return MEAN + DEVIATION * noise.astype(np.float64)


def sample(denoise, noise, levels, known, ceilings, **options):
    """All of sampling where something is given: what is known, noised, and then solved."""
    x = set_off(noise, levels, known, ceilings)
    return solve(denoise, x, levels, known=known, ceilings=ceilings, **options)[0]


@functools.cache
def solver(step, steps, shift=1.0):
    levels = schedule(steps, shift)
    return jax.jit(lambda noise: solve(posterior_mean, noise, levels, step=step)[0])


def error(step, steps, noise, shift=1.0):
    return np.abs(solver(step, steps, shift)(noise) - exact(noise)).max()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("step", "order", "steps"),
    [(euler_step, 1, 16), (heun_step, 2, 16), (deis_step, 2, 64)],
)
def test_order_of_convergence(noise, step, order, steps, shift):
    coarse, fine = error(step, steps, noise, shift), error(step, 2 * steps, noise, shift)
    assert fine < 0.1
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_unipc_converges_at_its_order(noise):
    # The first step leaves pure noise, where its scale has no end: the shift of 1 makes it short.
    coarse, fine = error(unipc_step, 64, noise), error(unipc_step, 128, noise)
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.3)


def test_one_euler_step_is_the_clean_prediction_of_noise(noise):
    one = solver(euler_step, 1)(noise)
    np.testing.assert_allclose(one, np.full(SHAPE, MEAN), atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_the_schedule_falls_from_noise_to_clean(shift):
    levels = np.asarray(schedule(10, shift))
    assert levels.shape == (11,) and levels.dtype == np.float32
    assert levels[0] == pytest.approx(1.0, abs=1e-6) and levels[-1] == 0.0
    assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize("step", STEPS)
def test_frames_at_different_levels_each_move_as_if_alone(noise, step):
    t = np.float32([[1.0, 0.6, 0.2], [0.5, 0.5, 0.9]])
    s = np.float32([[0.8, 0.5, 0.0], [0.1, 0.4, 0.9]])
    levels = np.float32([[1.0, 0.7, 0.3], [0.8, 0.6, 0.9]])
    earlier = np.float32([[1.0, 0.8, 0.9], [0.8, 0.7, 1.0]])
    last = Last(noise * 0.5, levels, noise * 1.1, noise * 0.4, earlier)
    together = np.asarray(step(posterior_mean, noise, t, s, last)[0])
    for b in range(2):
        for frame in range(3):
            at = slice(b, b + 1), slice(frame, frame + 1)
            before = Last(*(value[at] for value in last))
            alone, _ = step(posterior_mean, noise[at], t[at], s[at], before)
            np.testing.assert_allclose(together[at], alone, rtol=1e-6, atol=1e-6)
    # From a level to itself is no step.
    np.testing.assert_array_equal(together[1, 2], noise[1, 2])


def mixing(x, t):
    """A network in which every frame depends on all frames and levels."""
    return jnp.tanh(jnp.roll(x, 1, axis=1) + jnp.cumsum(x, axis=1) + t[..., None, None, None])


@pytest.mark.parametrize("step", STEPS)
def test_held_frames_stay_bit_for_bit(noise, known, step):
    held = np.array([[True, False, True], [False, True, False]])
    run = jax.jit(functools.partial(sample, mixing, step=step, levels=schedule(5, 1.0)))
    result = np.asarray(run(noise, known=known, ceilings=np.float32(~held)))
    np.testing.assert_array_equal(result[held], known[held])
    assert np.isfinite(result).all()
    assert np.abs(result - known)[~held].max() > 0.1


def test_the_network_sees_held_frames_clean_and_at_level_zero(noise, known):
    ceilings = np.ones(SHAPE[:2], np.float32)
    ceilings[:, 0] = 0.0

    def copy_first(x, t):
        # Predicts for every frame what it sees of the first, plus that frame's level.
        return jnp.broadcast_to(x[:, :1] + t[:, :1, None, None, None], x.shape)

    result = sample(copy_first, noise, schedule(3, 1.0), known=known, ceilings=ceilings)
    expected = np.broadcast_to(known[:, :1], SHAPE)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("schedule_of", ["5/20", "3/50", "1/7", "8/2", "5/1"])
def test_unipc_is_that_of_diffusers(schedule_of):
    with np.load(GOLDEN) as file:
        golden = dict(file)
    shift, steps = (float(number) for number in schedule_of.split("/"))
    levels = schedule(int(steps), shift, grid=1000)
    np.testing.assert_array_equal(levels, golden[f"levels/{schedule_of}"])
    told = golden[f"told/{schedule_of}"]
    np.testing.assert_array_equal(np.floor(levels[:-1] * np.float32(1000)), told)

    def clean(x, t):
        return jnp.tanh(jnp.roll(x, 1, 1) + 0.3 * jnp.cumsum(x, 1) + t[..., None, None, None])

    run = jax.jit(functools.partial(solve, clean, levels=levels, step=unipc_step))
    result, _ = run(golden["noise"])
    np.testing.assert_allclose(result, golden[f"result/{schedule_of}"], atol=2e-6)


def test_a_schedule_of_discrete_levels_starts_where_an_edit_does():
    levels = schedule(10, 3.0, 0.5, grid=1000)
    assert levels[0] == pytest.approx(3 * 0.5 / (1 + 2 * 0.5)) and levels[-1] == 0
    assert (np.diff(levels) < 0).all() and levels[-2] > schedule(10, 3.0, 0.5)[-2]


def test_nothing_held_is_the_plain_solution(noise, known):
    levels = schedule(4, 1.0)
    plain, _ = solve(mixing, noise, levels)
    free = sample(mixing, noise, levels, known=known, ceilings=np.ones(SHAPE[:2], np.float32))
    np.testing.assert_array_equal(plain, free)


@pytest.mark.parametrize("step", STEPS)
def test_a_rough_hint_waits_at_its_ceiling(noise, known, step):
    """It sets off from the known latents with that much noise, once the others have come down."""
    seen = []

    def record(x, t):
        jax.debug.callback(lambda x, t: seen.append((x, t)), x, t, ordered=True)
        return mixing(x, t)

    ceilings = np.ones(SHAPE[:2], np.float32)
    ceilings[:, 1] = 0.5
    jax.block_until_ready(
        sample(record, noise, schedule(4, 1.0), step=step, known=known, ceilings=ceilings)
    )
    levels = np.array([t[0] for _, t in seen])
    assert (levels[:, 1] == np.minimum(levels[:, 0], 0.5)).all() and (levels[:, 0] > 0.5).any()
    for x, t in seen:
        if t[0, 0] >= 0.5:
            np.testing.assert_allclose(x[:, 1], 0.5 * (known + noise)[:, 1], atol=1e-6)


def test_an_edit_sets_off_part_way(noise, known):
    """A schedule that starts low, with its ceiling throughout, sees the noised input first."""
    start = schedule(3, 2.0, 0.4)
    assert start[0] == pytest.approx(2 * 0.4 / (1 + 0.4))
    ceilings = np.full(SHAPE[:2], start[0])
    result = sample(lambda x, t: x, noise, start, known=known, ceilings=ceilings)
    # A network that sees no noise to take away leaves the input as it is.
    np.testing.assert_allclose(result, (1 - start[0]) * known + start[0] * noise, atol=1e-6)


def test_each_frame_can_have_a_schedule_of_its_own(noise):
    levels = np.stack([np.linspace(1, 0, 4), np.linspace(0.7, 0.3, 4), np.linspace(0.2, 0, 4)], -1)
    together, _ = solve(posterior_mean, noise, jnp.float32(levels))
    for frame in range(3):
        at = np.s_[:, frame : frame + 1]
        alone, _ = solve(posterior_mean, noise[at], jnp.float32(levels[:, frame]))
        np.testing.assert_allclose(together[at], alone, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_a_schedule_may_be_solved_in_two_parts(noise, known, step):
    """With what the first hands over; steps of all orders lie on both sides of the cut."""
    levels = schedule(6, 2.0)
    ceilings = np.ones(SHAPE[:2], np.float32)
    ceilings[:, 0], ceilings[:, 1] = 0.0, 0.8
    options = {"step": step, "known": known, "ceilings": ceilings}
    x = set_off(noise, levels, known, ceilings)
    run = functools.partial(solve, mixing, **options)
    whole, _ = run(x, levels)
    for cut in (1, 3):
        result, last = run(x, levels[: cut + 1])
        result, _ = run(result, levels[cut:], last=last)
        np.testing.assert_allclose(result, whole, atol=1e-6)


def test_predictions_are_kept_in_range():
    x = np.float32([-9, -2, 0, 2, 9])
    np.testing.assert_array_equal(limit_range(x, 3.0), np.float32([-3, -2, 0, 2, 3]))
    np.testing.assert_array_equal(limit_range(x, None), x)


def test_a_ring_has_no_seam(noise):
    """Turning the noise turns the result, for a network that sees only frames next to each other.

    It is cut open at another place in each step; all of them are seen from inside in most.
    """

    def neighbours(x, t):
        before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
        return 0.5 * jnp.tanh(x + before)

    ring = jax.jit(lambda x: solve(neighbours, x, schedule(40, 1.0), circular=True)[0])
    line = jax.jit(lambda x: solve(neighbours, x, schedule(40, 1.0))[0])
    turned = {
        run: np.abs(np.roll(run(np.roll(noise, 1, axis=1)), -1, axis=1) - run(noise)).mean()
        for run in (ring, line)
    }
    assert turned[ring] < 0.3 * turned[line]
