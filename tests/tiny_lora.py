"""Random adapters for the transformer of `tiny_model`, and a plain way to use them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from tiny_model import DIT_CONFIG

from sora_jax.models.lora import LoRAConfig, init_lora

LORA = LoRAConfig(rank=3, alpha=5.0)


def draw_adapters(lora=LORA, seed=2, config=DIT_CONFIG):
    """Adapters none of which is zero."""
    shapes = jax.eval_shape(lambda key: init_lora(config, lora, key), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), nn.unbox(shapes))


def merged(base, adapters, scale):
    """Parameters with the products added to the kernels, plainly."""
    flat, low = (traverse_util.flatten_dict(tree, sep="/") for tree in (base, adapters))
    for module in {name.rpartition("/")[0] for name in low}:
        change = jnp.einsum("lir,lro->lio", low[f"{module}/a"], low[f"{module}/b"])
        flat[f"{module}/kernel"] = flat[f"{module}/kernel"] + scale * change
    return traverse_util.unflatten_dict(flat, sep="/")
