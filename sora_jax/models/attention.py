"""Softmax attention: the one call site for every platform and every way to split it.

Small problems are written out; others run block by block in the kernel of the platform, and on a
mesh each device has its clips, heads and tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from sora_jax.models import blockwise, splash
from sora_jax.models.context_parallel import Kernel, Names, attend_locally, attend_over_context
from sora_jax.sharding import fitting_spec, is_split

_UNNAMED = Names("attention", "attention_sums")
_PLAIN_SCORES = 2**18  # up to this many scores over all heads and clips, loops only cost time


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    names: Names = _UNNAMED,
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v for each head, with the softmax in float32.

    Tokens have one axis, [B, N, K, d], or two, [B, T, S, K, d]: frames and places, of which a mesh
    may split the places ("tokens" of `sora_jax.sharding`). All see all.

    Args:
      q: queries.
      k: keys, with as many axes as the queries, or with one axis of tokens that no mesh splits.
      v: values, shaped like the keys.
      mask: bool, shaped like the keys' [B, tokens], those that may be attended to, at least one a
        clip; None for all.
      names: for a policy of what the backward pass keeps.

    Returns:
      Shaped like q, in its dtype.
    """
    if q.shape[0] != k.shape[0] or q.shape[-2:] != k.shape[-2:] or k.shape != v.shape:
        raise ValueError(
            f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit together: give "
            "[B, N, K, d], [B, M, K, d] and [B, M, K, d]"
        )
    if mask is not None and mask.shape != k.shape[:-2]:
        raise ValueError(f"mask {mask.shape} must be [B, M] of the keys: {k.shape[:-2]}")
    arrays = (_flat(q), _flat(k), _flat(v), _flat_mask(mask))
    b, n, heads, _ = arrays[0].shape
    if b * heads * n * arrays[1].shape[1] <= _PLAIN_SCORES:
        return _plain(*arrays).reshape(q.shape)
    if not is_split():
        return attend_locally(_KERNEL, names, *arrays).reshape(q.shape)
    return _on_mesh(q, k, v, mask, names)


def _on_mesh(q, k, v, mask, names):
    """Every device attends for its own clips, heads and queries; keys travel if they are split."""

    def spec(x):
        tokens = (None, "tokens") if x.ndim == 5 else (None,)
        return fitting_spec(("batch", *tokens, "activation_heads", None), x.shape)

    def local(q, k, v, mask):
        arrays = (_flat(q), _flat(k), _flat(v), _flat_mask(mask))
        if context is None:
            return attend_locally(_KERNEL, names, *arrays).reshape(q.shape)
        return attend_over_context(_KERNEL, names, *arrays, axis=context).reshape(q.shape)

    keys = spec(k)
    context = keys[2] if k.ndim == 5 else None
    in_specs = (spec(q), keys, keys, None if mask is None else PartitionSpec(*keys[:-2]))
    # Kernels do not say along which axes their results vary, hence no check of it.
    run = jax.shard_map(local, in_specs=in_specs, out_specs=spec(q), check_vma=False)
    return run(q, k, v, mask)


def _flat(x):
    return x.reshape(x.shape[0], -1, *x.shape[-2:])


def _flat_mask(mask):
    return None if mask is None else mask.reshape(mask.shape[0], -1)


def _plain(q, k, v, mask):
    scores = jnp.einsum("bnkd,bmkd->bknm", q, k, preferred_element_type=jnp.float32)
    scores = scores * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, blockwise.MASKED)
    return jnp.einsum("bknm,bmkd->bnkd", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


def _heads_first(function: Callable) -> Callable:
    """A function of `blockwise` with arrays [B, K, N, d] in and out, as those of `splash` have.

    The transposes and those around it cancel out: on CPU, turning each clip where it is used is a
    tenth of the train step faster.
    """

    def run(*arrays):
        arrays = (x.swapaxes(1, 2) if x is not None and x.ndim == 4 else x for x in arrays)
        return tuple(x.swapaxes(1, 2) if x.ndim == 4 else x for x in function(*arrays))

    return run


def _per_platform(tpu: Callable, default: Callable) -> Callable:
    """The function of the platform that the program is lowered for."""

    def run(*arrays):
        if not splash.is_for(arrays[0]):
            return default(*arrays)
        return lax.platform_dependent(*arrays, tpu=tpu, default=default)

    return run


_KERNEL = Kernel(
    forward=_per_platform(splash.forward, _heads_first(blockwise.forward)),
    backward=_per_platform(splash.backward, _heads_first(blockwise.backward)),
)
