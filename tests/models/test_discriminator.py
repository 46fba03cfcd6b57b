"""The patch discriminator: every size the VAE takes, patches only, and it can be taught."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from sora_jax.models.discriminator import Discriminator, init_discriminator
from sora_jax.training.losses import hinge_loss


@jax.jit
def judge(params, x):
    return Discriminator().apply({"params": params}, x)


@jax.jit
def init():
    return nn.unbox(init_discriminator(jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    """Drawn ones, with a head that is not silent."""
    params = init()
    kernel = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return {**params, "head": {"kernel": kernel}}


def draw(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 16, 24), (5, 16, 24), (2, 4, 4), (1, 20, 12)]
)
def test_an_image_and_a_video_of_any_size(params, frames, height, width):
    scores = judge(params, draw(2, frames, height, width, 3))
    assert scores.shape == (2, frames, -(-height // 8), -(-width // 8))
    assert scores.dtype == jnp.float32 and np.isfinite(scores).all()
    assert np.std(scores) > 0


def test_an_image_is_judged_as_a_clip_that_stands_still(params):
    image = draw(1, 1, 16, 16, 3)
    scores = judge(params, np.repeat(image, 4, axis=1))
    expected = np.repeat(judge(params, image), 4, axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_score_sees_22_pixels_of_5_frames(params):
    x = draw(1, 9, 48, 48, 3)
    seen = np.abs(jax.jit(jax.grad(lambda x: judge(params, x)[0, 4, 2, 3]))(x)).max(axis=(0, 4))
    assert np.flatnonzero(seen.max(axis=(1, 2))).tolist() == [2, 3, 4, 5, 6]
    assert np.ptp(np.flatnonzero(seen.max(axis=(0, 2)))) + 1 == 22
    assert np.ptp(np.flatnonzero(seen.max(axis=(0, 1)))) + 1 == 22


def test_clips_of_a_batch_do_not_see_each_other(params):
    x = draw(3, 2, 16, 16, 3)
    together = judge(params, x)
    np.testing.assert_allclose(together[1:2], judge(params, x[1:2]), atol=1e-4)


def test_an_even_field_has_finite_gradients(params):
    gradients = jax.jit(jax.grad(lambda p, x: jnp.mean(judge(p, x)), (0, 1)))(
        params, np.zeros((1, 1, 16, 16, 3), np.float32)
    )
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_it_says_nothing_at_first():
    params = init()
    assert not np.any(judge(params, draw(1, 1, 16, 16, 3)))


@pytest.mark.parametrize("frames", [1, 5])
def test_it_learns_to_tell_frames_from_blurred_ones(frames):
    real = draw(4, frames, 16, 16, 3)
    fake = (real + np.roll(real, 1, axis=2) + np.roll(real, 1, axis=3)) / 3
    tx = optax.adam(1e-3)
    params = init()
    state = tx.init(params)

    def loss(params):
        return hinge_loss(judge(params, real), judge(params, fake))

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params, state, first = step(params, state)
    assert float(first) == pytest.approx(2.0)
    for _ in range(19):
        params, state, _ = step(params, state)
    assert np.mean(judge(params, real) > 0) > 0.95
    assert np.mean(judge(params, fake) < 0) > 0.95
