"""The parameter of a layer, with the logical axes that `sora_jax.sharding` resolves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn


def parameter(
    module: nn.Module,
    name: str,
    init: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    """A module's parameter of that name and shape, float32 as drawn by init(key, shape).

    `nn.Module.param` traces the initializer too where there are parameters, to know the shape: an
    eighth of the time that tracing a network takes.

    Raises:
      flax.errors.ScopeParamShapeError: what is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, nn.with_logical_partitioning(init, axes), shape)
    value = nn.unbox(module.get_variable("params", name))
    found = jnp.shape(jax.tree.leaves(value)[0])  # of a QArray of qwix, that of its integers
    if found != shape:
        raise errors.ScopeParamShapeError(name, module.scope.path_text, found, shape)
    return value
