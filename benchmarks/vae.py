"""Speed of the VAE: python -m benchmarks.vae encode|decode WIDTH [repeats]

Wan 2.1's with base width 32 or 96 on one clip of 17 x 128 x 128, float32.
"""

import sys
from collections.abc import Callable

import jax
from flax import linen as nn

from benchmarks.timing import measure, report
from sora_jax.host_memory import keep_freed_memory
from sora_jax.models import conv
from sora_jax.models.vae import VAE, VAEConfig, init_vae

FRAMES, SIDE = 17, 128


def make_rows(
    kind: str, width: int, frames: int = FRAMES, side: int = SIDE
) -> dict[str, tuple[Callable[[], jax.Array], float]]:
    """A call that returns arrays, and its floating-point operations."""
    config = VAEConfig(encoder_width=width, decoder_width=width)
    params = nn.meta.unbox(init_vae(config, jax.random.key(0)))
    shape = (1, frames, side, side, 3)
    if kind == "decode":
        shape = (1, *config.latent_shape(frames, side, side))
    x = jax.random.normal(jax.random.key(1), shape)

    def apply(params, x):
        return VAE(config).apply({"params": params}, x, method=kind)[0]

    run = jax.jit(apply)
    # Counted on the form without loops, whose every convolution the compiler sees.
    conv.LARGE_FRAME, large = sys.maxsize, conv.LARGE_FRAME
    flops = jax.jit(lambda params, x: apply(params, x)).lower(params, x).cost_analysis()["flops"]
    conv.LARGE_FRAME = large
    return {f"VAE {kind}, base {width}": (lambda: run(params, x), flops)}


if __name__ == "__main__":
    keep_freed_memory()
    repeats = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    report(measure(make_rows(sys.argv[1], int(sys.argv[2])), repeats))
