"""Attention on TPU: the splash kernels of tokamax, forward and fused backward.

A Pallas kernel works on one device's arrays. Those here have the interface of `blockwise`, and use
the two functions beneath tokamax's own differentiable one, since a ring needs the backward pass of
a share of the keys under the log-sum-exp of all of them.
"""

import importlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sora_jax.sharding import platform

_LANES = 128
# Queries and keys at a time. Chips do 166 (v5p) to 574 (v6e) operations while they read a byte, and
# a block of b queries uses each byte of the keys b times; with 2,048 the scores no longer fit into
# 16 MiB.
_SMALLEST, _LARGEST = 640, 1024
_SCORES_AT_ONCE = 512  # keys at a time within a block of them
_LIBRARY = "tokamax._src.ops.experimental.tpu.splash_attention"


def is_for(q: jax.Array) -> bool:
    """Whether the kernels can do with such heads, and a TPU is what the program may be for."""
    return platform() == "tpu" and q.shape[-1] % _LANES == 0


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """See `blockwise.forward`, but for heads first: arrays [B, K, N, d]."""
    n = q.shape[2]
    operands, segments = _operands(q, k, v, mask)
    kernel = _kernel(operands[0].shape[2], operands[1].shape[2])

    def clip(q, k, v, segments):
        out, sums = kernel.library._splash_attention_forward(
            kernel.masks[0], q, k, v, segments, None, save_residuals=True, **kernel.settings
        )
        return out, sums["logsumexp"]

    out, lse = jax.vmap(clip)(*operands, segments)
    # The kernel's logarithms are of base 2.
    return out[:, :, :n], lse[..., :n] * math.log(2.0)


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """See `blockwise.backward`, but for heads first: arrays [B, K, N, d]."""
    n, m, scale = q.shape[2], k.shape[2], q.shape[-1] ** -0.5
    operands, segments = _operands(q, k, v, mask)
    kernel = _kernel(operands[0].shape[2], operands[1].shape[2])
    # Rows past the end have no gradient, and so no say in the others'.
    out, grad = (_pad(x, _padded(n), axis=2) for x in (out, grad))
    lse = _pad(lse / math.log(2.0), _padded(n), axis=2)

    def clip(q, k, v, segments, out, grad, lse):
        residuals = (q, k, v, segments, None, out, lse, kernel.masks[1])
        return kernel.library._splash_attention_bwd(
            False, res=residuals, grads=grad, dkv_mask_sparsity=1.0, **kernel.settings
        )[2:5]

    dq, dk, dv = jax.vmap(clip)(*operands, segments, out, grad.astype(q.dtype), lse)
    dq = (dq.astype(jnp.float32) * scale).astype(q.dtype)
    return tuple(x[:, :, :size] for x, size in ((dq, n), (dk, m), (dv, m)))


class _Kernel(NamedTuple):
    """The library's module, its plans of the forward and backward pass, and its settings."""

    library: Any
    masks: tuple
    settings: dict[str, Any]


def _library() -> Any:
    try:
        return importlib.import_module(f"{_LIBRARY}.splash_attention_kernel")
    except ImportError as error:
        raise ValueError(
            f'attention on TPU is tokamax\'s ({error}); get it: pip install "sora_jax[tpu]"'
        ) from error


def _kernel(n: int, m: int) -> _Kernel:
    """The kernels for n queries and m keys, both whole numbers of blocks."""
    library = _library()
    masks = importlib.import_module(f"{_LIBRARY}.splash_attention_mask")
    keys = _block(m)
    at_once = _SCORES_AT_ONCE if keys % _SCORES_AT_ONCE == 0 else _LANES
    config = library.SplashConfig(
        block_q=_block(n),
        block_kv=keys,
        block_kv_compute=at_once,
        block_q_dkv=_block(n),
        block_kv_dkv=keys,
        block_kv_dkv_compute=at_once,
        # Sums of the queries' gradients in three buffers instead of one for each block of keys.
        dq_reduction_steps=3,
        interpret=platform() != "tpu",
    )
    kernel = library.make_splash_mha(masks.FullMask((n, m)), config=config, q_seq_shards=1)
    settings = {
        name: kernel.kwargs[name]
        for name in ("mask_value", "is_mqa", "config", "mask_function", "fwd_mask_sparsity")
    }
    return _Kernel(library, (kernel.fwd_mask_info, kernel.dkv_mask_info), settings)


def _operands(q, k, v, mask):
    """Scaled queries, keys and values [B, K, N, d], padded, and which of them belong together."""
    b, n, m = q.shape[0], q.shape[2], k.shape[2]
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(k.dtype)
    sizes = _padded(n), _padded(m)
    q, k, v = (_pad(x, size, axis=2) for x, size in zip((q, k, v), (*sizes, sizes[1])))
    if mask is None and sizes[1] == m:
        return (q, k, v), None
    mask = jnp.ones((b, m), bool) if mask is None else mask
    segments = _library().SegmentIds(
        q=jnp.ones((b, sizes[0]), jnp.int32), kv=_pad(mask, sizes[1], axis=1).astype(jnp.int32)
    )
    return (q, k, v), segments


def _pad(x, size, axis):
    widths = [(0, 0)] * x.ndim
    widths[axis] = 0, size - x.shape[axis]
    return jnp.pad(x, widths)


def _block(n: int) -> int:
    """Rows of a block, a number of lanes; of those large enough, the one that leaves least over."""
    if n <= _SMALLEST:
        return -(-n // _LANES) * _LANES
    sizes = range(_SMALLEST, _LARGEST + 1, _LANES)
    return min(sizes, key=lambda size: (-(-n // size) * size, -size))


def _padded(n: int) -> int:
    return -(-n // _block(n)) * _block(n)
