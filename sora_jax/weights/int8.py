"""Weights of matrix products in int8 with a scale for each column, made by qwix.

Only what is held is small: a layer makes numbers of its compute dtype of its own weights when it is
their turn (`models.layers.Dense`). qwix is imported where there is something for it to do.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.weights.tensor_files import allocate

_INT8 = np.dtype(np.int8)


def held_dtype(part: str, path: str, dtype: np.dtype | None, stored: np.dtype) -> np.dtype:
    """What a parameter is held in.

    In int8 are the matrices of the blocks, nearly all that a large network has. Embeddings, norms,
    biases, modulation and what is before and after the blocks are small or delicate, and so is all
    of a VAE: they are held in bfloat16 beside it.

    Args:
      part: of the model, such as "dit" or "text".
      path: of the parameter in it, such as "blocks/self_attention/query/kernel".
      dtype: that the user asked for, of `tensor_files.as_dtype`.
      stored: that of the file.
    """
    if dtype != _INT8:
        return np.dtype(stored) if dtype is None else dtype
    steps = path.split("/")
    matrix = "blocks" in steps and steps[-1] == "kernel"
    return _INT8 if matrix and part.startswith(("dit", "text")) else np.dtype(jnp.bfloat16)


def quantise(layers: Iterable[np.ndarray], shape: tuple[int, int, int]) -> Any:
    """A qwix QArray of matrices [input, output] that come one by one, stacked to `shape`.

    Scales are float32. The largest number of a column is 127.5 times its scale, so that none is off
    by more than half a scale.
    """
    import qwix

    values = allocate(shape, _INT8)
    scales = allocate((shape[0], 1, shape[2]), np.dtype(np.float32))
    for index, x in enumerate(layers):
        one = _quantise_columns()(x)
        values[index], scales[index] = one.qvalue, one.scale
    return qwix.QArray(values, scales, None, jnp.int8)


@functools.cache
def _quantise_columns() -> Callable[[np.ndarray], Any]:
    import qwix

    # In float32, which the scales then are too.
    return jax.jit(lambda x: qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=(1,)))


def abstract(shape: tuple[int, int, int]) -> Any:
    """The QArray of `quantise` without numbers, for what is only compiled."""
    import qwix

    values = jax.ShapeDtypeStruct(shape, jnp.int8)
    scales = jax.ShapeDtypeStruct((shape[0], 1, shape[2]), jnp.float32)
    return qwix.QArray(values, scales, None, jnp.int8)
