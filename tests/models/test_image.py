"""The image encoder's input: Pillow's pixels, brought to its size, cut and normalised."""

import numpy as np
import pytest
from PIL import Image

from sora_jax.models.image import ImageConfig
from sora_jax.models.image_pixels import prepare, resize


def draw(height, width, seed=0):
    """An image of all brightnesses: smooth, with noise and hard edges."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(height, width, 3)) * 9, axis=1) + 128
    smooth[: height // 3] = rng.integers(0, 2, (height // 3, width, 3)) * 255
    return np.uint8(np.clip(smooth, 0, 255))


@pytest.mark.parametrize(
    "before, after",
    [
        *(((480, 832), (224, 388)), ((37, 53), (28, 40)), ((20, 21), (28, 29))),
        *(((28, 100), (28, 100)), ((224, 500), (224, 400)), ((100, 29), (300, 28))),
        ((1, 1), (5, 7)),
    ],
)
def test_resizing_is_pillows_in_every_bit(before, after):
    image = draw(*before)
    expected = Image.fromarray(image).resize(after[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(image, *after), np.asarray(expected))


@pytest.mark.parametrize("height, width", [(64, 101), (101, 64), (28, 28), (20, 30)])
def test_the_middle_of_an_image_is_normalised(height, width):
    config = ImageConfig(side=28, mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 2.0))
    image = draw(height, width)
    small = resize(image, 28 * height // min(height, width), 28 * width // min(height, width))
    top, left = (small.shape[0] - 28) // 2, (small.shape[1] - 28) // 2
    expected = np.float64(small[top : top + 28, left : left + 28]) / 255
    for channel in range(3):
        expected[..., channel] -= config.mean[channel]
        expected[..., channel] /= config.std[channel]
    result = prepare(image, config)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"heads": 3}, "width 1280 does not divide by heads 3"),
        ({"patch": 15}, "side 224 does not divide by patch 15"),
        ({"layers": 0}, "ImageConfig.layers is 0; it must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"mean": (1.0,)}, "must be three numbers"),
    ],
)
def test_errors_of_the_config_name_the_value(fields, words):
    with pytest.raises(ValueError, match=words):
        ImageConfig(**fields)
