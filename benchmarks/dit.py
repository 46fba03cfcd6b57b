"""Speed of the transformer: python -m benchmarks.dit forward|train [repeats]

Width 384, 8 layers, 6 heads of 64, MLP 1536, 128 text tokens of 512, latents 16 x 8 x 32 x 32:
2,048 tokens, batch 2, float32. Run the two in processes of their own to see each one's memory.
"""

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.timing import measure, report
from sora_jax.host_memory import keep_freed_memory
from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.dit_config import DiTConfig, flops

CONFIG = DiTConfig(width=384, layers=8, heads=6, mlp_width=1536, latent_channels=16, text_width=512)
BATCH, SHAPE, WORDS = 2, (8, 32, 32, 16), 128


def make_rows(
    kind: str, config: DiTConfig = CONFIG, shape: tuple[int, ...] = SHAPE, words: int = WORDS
) -> dict[str, tuple[Callable[[], jax.Array], float]]:
    """A call that returns arrays, and its floating-point operations."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = nn.meta.unbox(init_dit(config, keys[0]))
    # Freshly made, several layers are zero, and the compiler must not profit.
    params = jax.tree.map(lambda x: x + 0.01, params)
    x = jax.random.normal(keys[1], (BATCH, *shape))
    t = jax.random.uniform(keys[2], (BATCH, shape[0]))
    text = jax.random.normal(keys[3], (BATCH, words, config.text_width))
    tokens = shape[0] * shape[1] * shape[2] // 4
    work = BATCH * flops(config, tokens, words, shape[0])
    model = DiT(config, remat="products")

    if kind == "forward":
        forward = jax.jit(lambda params: model.apply({"params": params}, x, t, text))
        return {"DiT forward": (lambda: forward(params), float(work))}
    tx = optax.adamw(1e-4)

    def loss(params):
        return jnp.mean(jnp.square(model.apply({"params": params}, x, t, text) - x))

    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    state = (params, tx.init(params))

    def run():
        nonlocal state
        *new, value = step(*state)
        state = tuple(new)
        return value

    return {"DiT forward + backward + AdamW": (run, 3.0 * work)}


if __name__ == "__main__":
    keep_freed_memory()
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    report(measure(make_rows(sys.argv[1]), repeats))
