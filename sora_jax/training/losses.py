"""What training minimises, every term reduced in float32."""

import jax
import jax.numpy as jnp
from jax import nn


def flow_loss(
    prediction: jax.Array,
    target: jax.Array,
    t: jax.Array,
    held: jax.Array,
    *,
    clean: bool,
    floor: float,
) -> jax.Array:
    """Mean squared error in velocity over the frames that are not held.

    A clean prediction's error counts 1 / t^2 (t at least `floor`): the error of the velocity
    that follows from it (arXiv 2511.13720).

    Args:
      prediction, target: [B, T, h, w, C], both clean latents or both velocities.
      t: levels [B, T].
      held: bool [B, T], frames given at level 0, which carry no loss.
      clean: whether the two are clean latents.
      floor: level from which on the weight of a clean prediction grows no more.

    Returns:
      float32 [B], a mean over each clip.
    """
    error = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    error = jnp.mean(error, axis=tuple(range(2, error.ndim)))
    if clean:
        error = error / jnp.square(jnp.maximum(t, floor))
    weight = 1.0 - held.astype(jnp.float32)
    return jnp.sum(error * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def kl_loss(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Mean over latents of KL(N(mean, exp(logvar)) || N(0, 1)), in nats."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def hinge_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """A discriminator's loss: scores of real frames are to be above 1, of fake ones below -1.

    What is that far on its side pulls no more (arXiv 1705.02894).
    """
    return jnp.mean(nn.relu(1.0 - real)) + jnp.mean(nn.relu(1.0 + fake))


def halve(x: jax.Array) -> jax.Array:
    """Averages squares of two by two pixels: [B, F, H, W, C] -> [B, F, H/2, W/2, C]."""
    b, f, h, w, c = x.shape
    return x.reshape(b, f, h // 2, 2, w // 2, 2, c).mean(axis=(3, 5))


def change_loss(x: jax.Array, y: jax.Array) -> jax.Array:
    """L1 between the changes from frame to frame, [B, F, H, W, C] -> []: what y flickers.

    0 of images, which do not change.
    """
    if x.shape[1] == 1:
        return jnp.zeros(())
    return jnp.mean(jnp.abs(jnp.diff(x - y, axis=1)))


def gradient_loss(x: jax.Array, y: jax.Array, scales: int = 3) -> jax.Array:
    """L1 between the differences of neighbouring pixels and frames, at halving sizes.

    Edges and motion weigh as much as areas, which keeps reconstructions sharp with no learned
    perceptual network; a mean of such terms over scales follows arXiv 1511.05440.
    """
    total = jnp.zeros(())
    difference = x - y
    for scale in range(scales):
        for axis in (1, 2, 3):
            if difference.shape[axis] > 1:
                total += jnp.mean(jnp.abs(jnp.diff(difference, axis=axis)))
        if scale + 1 < scales:
            difference = halve(difference)
    return total / scales
