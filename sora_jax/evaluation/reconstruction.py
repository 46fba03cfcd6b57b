"""How close a reconstruction is: PSNR, SSIM, and how much it changes from frame to frame."""

import jax
import jax.numpy as jnp


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each clip in decibels: [B, ...] in [-1, 1] -> [B].

    The mean over a clip's pixels is taken before the logarithm.
    """
    mse = jnp.mean(jnp.square(x - y), axis=tuple(range(1, x.ndim)))
    return 10.0 * jnp.log10(4.0 / jnp.maximum(mse, 1e-10))


def ssim(x: jax.Array, y: jax.Array, *, window: int = 11, sigma: float = 1.5) -> jax.Array:
    """Structural similarity of each clip, [B, F, H, W, C] in [-1, 1] -> [B].

    Gaussian windows inside the frame only, every channel for itself, as in Wang et al. 2004
    ("Image quality assessment: from error visibility to structural similarity").
    """
    position = jnp.arange(window, dtype=jnp.float32) - (window - 1) / 2
    weights = jnp.exp(-0.5 * jnp.square(position / sigma))
    weights = weights / jnp.sum(weights)

    def blur(image: jax.Array) -> jax.Array:
        # Separable, one channel at a time: [n, H, W] -> [n, H - 10, W - 10].
        image = image[:, None]
        for kernel in (weights[:, None], weights[None, :]):
            image = jax.lax.conv_general_dilated(image, kernel[None, None], (1, 1), "VALID")
        return image[:, 0]

    def planes(video: jax.Array) -> jax.Array:
        video = (video.astype(jnp.float32) + 1.0) / 2.0
        b, f, h, w, c = video.shape
        return video.transpose(0, 1, 4, 2, 3).reshape(b * f * c, h, w)

    p, q = planes(x), planes(y)
    mean_p, mean_q = blur(p), blur(q)
    var_p = blur(p * p) - mean_p**2
    var_q = blur(q * q) - mean_q**2
    covariance = blur(p * q) - mean_p * mean_q
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_p * mean_q + c1) * (2 * covariance + c2)
    score = score / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
    return jnp.mean(score.reshape(x.shape[0], -1), axis=1)


def change(x: jax.Array, y: jax.Array) -> jax.Array:
    """How much more y changes from frame to frame than x: [B, F, H, W, C] -> [B], 1 for the same.

    Mean absolute changes of a pixel, those of y over those of x. More than 1 is flicker. NaN where
    x stands still.
    """
    of_x, of_y = (jnp.mean(jnp.abs(jnp.diff(v, axis=1)), axis=(1, 2, 3, 4)) for v in (x, y))
    return jnp.where(of_x > 0, of_y / of_x, jnp.nan)
