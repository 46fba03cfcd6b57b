"""Low-rank adapters of the transformer's matrices (LoRA, arXiv 2106.09685).

A layer with an adapter computes x W + s (x A) B, s = alpha / rank, with W as it is. The adapters
are a tree beside the parameters, the collection "lora" of `DiT.apply`: A and B of a layer lie where
its kernel lies among those. So nothing of W has a gradient, and none of it is copied.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from sora_jax.models.dit import init_dit
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.sizes import abstract_params

# What config.lora.targets may name, and the layers that each stands for where there are such.
TARGETS = {
    "self_attention": tuple(
        f"blocks/self_attention/{name}" for name in ("query", "key", "value", "out")
    ),
    "cross_attention": (
        "blocks/cross_attention/query",
        "text_reader/blocks/key",
        "text_reader/blocks/value",
        "text_reader/blocks/image_key",
        "text_reader/blocks/image_value",
        "blocks/cross_attention/out",
    ),
    "mlp": ("blocks/mlp_in", "blocks/mlp_out"),
}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Sizes of the adapters.

    Attributes:
      rank: columns of A and rows of B.
      alpha: what an adapter adds is multiplied by alpha / rank.
      targets: keys of TARGETS, the layers that have one.

    Raises:
      ValueError: a rank or an alpha that is not positive, or no target, or an unknown one.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self):
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"config.lora.rank={self.rank} must be a whole number such as 16")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"config.lora.alpha={self.alpha} must be positive; the rank, {self.rank}, is usual"
            )
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise ValueError(
                f"config.lora.targets={self.targets} must be one or more of {sorted(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the layers with an adapter, some of which only some transformers have."""
        return tuple(module for name in TARGETS if name in self.targets for module in TARGETS[name])


def init_lora(config: DiTConfig, lora: LoRAConfig, key: jax.Array) -> dict[str, Any]:
    """Adapters float32, boxed with their logical axes: "a" [layers, in, r], "b" [layers, r, out].

    B is zero, so that at first they change nothing.

    Raises:
      ValueError: a rank beyond that of a matrix.
    """
    boxed = traverse_util.flatten_dict(abstract_params(init_dit, config), sep="/")
    adapters = {}
    modules = [module for module in lora.modules if f"{module}/kernel" in boxed]
    for module, own_key in zip(modules, jax.random.split(key, len(modules))):
        kernel = boxed[f"{module}/kernel"]
        (layers, inputs, outputs), (_, before, after) = kernel.value.shape, kernel.names
        if lora.rank > min(inputs, outputs):
            raise ValueError(
                f"config.lora.rank={lora.rank} is more than the {inputs} x {outputs} matrix of "
                f"{module} has; use at most {min(inputs, outputs)}"
            )
        bound = inputs**-0.5
        a = jax.random.uniform(own_key, (layers, inputs, lora.rank), minval=-bound, maxval=bound)
        b = jnp.zeros((layers, lora.rank, outputs))
        adapters[f"{module}/a"] = nn.LogicallyPartitioned(a, ("layers", before, None))
        adapters[f"{module}/b"] = nn.LogicallyPartitioned(b, ("layers", None, after))
    return traverse_util.unflatten_dict(adapters, sep="/")


def scaled(adapters: Any, scale: float) -> Any:
    """Adapters whose B is multiplied by `scale`: what a layer takes, and what a file holds."""

    def one(path: Any, x: jax.Array) -> jax.Array:
        return x * scale if path[-1].key == "b" else x

    return jax.tree_util.tree_map_with_path(one, adapters)
