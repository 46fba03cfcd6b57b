"""Speed of the text encoder: python -m benchmarks.text [repeats]

UMT5's of 6 layers and width 512, 6 heads of 64, MLP 1024, 2 texts of 128 tokens, float32.
"""

import sys
from collections.abc import Callable

import jax
from flax import linen as nn

from benchmarks.timing import measure, report
from sora_jax.host_memory import keep_freed_memory
from sora_jax.models.text import TextConfig, TextEncoder, flops, init_text

CONFIG = TextConfig(vocabulary=32_000, width=512, layers=6, heads=6, head_width=64, mlp_width=1024)
BATCH, WORDS = 2, 128


def make_rows(
    config: TextConfig = CONFIG, batch: int = BATCH, words: int = WORDS
) -> dict[str, tuple[Callable[[], jax.Array], float]]:
    """A call that returns arrays, and its floating-point operations."""
    params = nn.meta.unbox(init_text(config, jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (batch, words), 1, config.vocabulary)
    encode = jax.jit(lambda params, tokens: TextEncoder(config).apply({"params": params}, tokens))
    return {"text encoder": (lambda: encode(params, tokens), float(batch * flops(config, words)))}


if __name__ == "__main__":
    keep_freed_memory()
    report(measure(make_rows(), int(sys.argv[1]) if len(sys.argv) > 1 else 15))
