"""Convolutions of video against XLA's 3-D convolution, and causal streams against whole clips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sora_jax.models.conv import FULL_BATCH, Past, conv_direct, conv_time_taps, conv_video
from sora_jax.models.conv_cpu import NARROW, conv_frame_by_frame


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference(x, kernel, stride=(1, 1), padding=((1, 1), (1, 1))):
    """One 3-D convolution, unpadded in time."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride[0], stride[1], stride[1]),
        ((0, 0), *padding),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )


LARGE = (64, 66)
# Batch, frames out, height, width, channels in and out.
WIDE = NARROW + 1
SIZES = [
    *[(2, 4, 5, 7, 3, 4), (1, 1, 1, 1, 2, 2), (1, 2, 8, 3, 5, 1), (3, 3, 2, 2, 1, 6)],
    *[(2, 5, 4, 6, WIDE, 3), (1, 4, 3, 2, 2, WIDE), (1, 1, 2, 2, WIDE, 2)],
]


@pytest.mark.parametrize("form", [conv_frame_by_frame, conv_time_taps])
@pytest.mark.parametrize("b, t, h, w, c, d", SIZES)
def test_value_and_both_gradients_are_those_of_a_3d_convolution(form, b, t, h, w, c, d):
    x, kernel = draw(b, t + 2, h, w, c), draw(3, 3, 3, c, d, seed=1)
    cotangent = draw(b, t, h, w, d, seed=2)

    def value_and_gradients(form):
        def run(x, kernel):
            y, pullback = jax.vjp(form, x, kernel)
            return y, *pullback(cotangent)

        return jax.jit(run)(x, kernel)

    for result, expected in zip(value_and_gradients(form), value_and_gradients(reference)):
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


def test_gradients_keep_the_dtypes_of_their_values():
    x, kernel = draw(1, 4, 3, 3, 2), draw(3, 3, 3, 2, 2, seed=1)
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel)]
    loss = jax.jit(jax.grad(lambda x, k: jnp.sum(conv_frame_by_frame(x, k) ** 2), (0, 1)))
    for result, expected in zip(loss(*half), loss(x, kernel)):
        assert result.dtype == jnp.bfloat16
        error = np.abs(result.astype(np.float32) - expected).max()
        assert error < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    "kernel, stride, padding, size",
    [
        ((3, 3, 3), (1, 1), ((1, 1), (1, 1)), (6, 8)),
        ((3, 3, 3), (1, 1), ((1, 1), (1, 1)), LARGE),
        ((3, 1, 1), (2, 1), ((0, 0), (0, 0)), (6, 8)),
        ((1, 3, 3), (1, 2), ((0, 1), (0, 1)), (6, 8)),
        ((1, 1, 1), (1, 1), ((0, 0), (0, 0)), (6, 8)),
    ],
)
def test_conv_video_is_a_3d_convolution(kernel, stride, padding, size):
    x, weights = draw(2, 7, *size, 3), draw(*kernel, 3, 4, seed=1)
    # "SAME" is what the even paddings are called; the corner of a strided one has no name.
    named = padding if stride[1] == 2 else "SAME"
    y = jax.jit(lambda x, k: conv_video(x, k, stride=stride, padding=named))(x, weights)
    expected = reference(x, weights, stride, padding)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())


def test_the_loop_over_frames_is_for_large_frames_on_cpus():
    def loops(size, platform):
        traced = jax.jit(conv_video).trace(draw(1, 6, *size, 2), draw(3, 3, 3, 2, 2))
        return "while" in traced.lower(lowering_platforms=(platform,)).as_text()

    assert loops(LARGE, "cpu")
    assert not loops(LARGE, "tpu")
    assert not loops((4, 4), "cpu")


def test_few_frames_are_one_convolution_on_tpus():
    def convolutions(frames):
        traced = jax.jit(conv_video).trace(draw(1, frames + 2, 4, 4, 2), draw(3, 3, 3, 2, 2))
        return traced.lower(lowering_platforms=("tpu",)).as_text().count("stablehlo.convolution")

    assert convolutions(FULL_BATCH - 1) == 1
    assert convolutions(FULL_BATCH) == 3


@pytest.mark.parametrize(
    "kernel, stride, padding",
    [
        ((3, 3, 3), (1, 1), "SAME"),
        ((1, 3, 3), (1, 2), ((0, 1), (0, 1))),
        ((1, 4, 4), (1, 2), "SAME"),
        ((3, 1, 1), (2, 1), "SAME"),
    ],
)
def test_taps_and_one_convolution_are_the_same(kernel, stride, padding):
    x, weights = draw(2, 5, 6, 7, 3), draw(*kernel, 3, 4, seed=1)
    one = conv_direct(x, weights, stride=stride, padding=padding)
    taps = conv_time_taps(x, weights, stride=stride, padding=padding)
    np.testing.assert_allclose(one, taps, atol=1e-5 * np.abs(taps).max())


def test_a_stream_of_chunks_equals_the_whole_clip():
    x, kernel = draw(2, 9, 3, 5, 2), draw(3, 3, 3, 2, 2, seed=1)

    def run(x, carry=None):
        past = Past(carry)
        y = conv_time_taps(*past.extend_or_cut(x, kernel))
        y = conv_time_taps(*past.extend_or_cut(jnp.tanh(y), kernel))
        return y, past.kept

    whole, _ = run(x)
    carry, chunks = None, []
    for start, stop in ((0, 1), (1, 2), (2, 6), (6, 9)):
        y, carry = run(x[:, start:stop], carry)
        assert [kept.shape[1] for kept in carry] == [2, 2]
        chunks.append(y)
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), whole, atol=1e-5)


def test_a_clip_begins_after_zeros():
    x = draw(1, 3, 2, 2, 1)
    extended = Past().extend(x, 2)
    np.testing.assert_array_equal(extended[:, :2], 0)
    np.testing.assert_array_equal(extended[:, 2:], x)
