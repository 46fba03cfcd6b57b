"""Attention in blocks for CPUs and GPUs: the matrix of all scores is never in memory.

The backward pass recomputes the scores from the saved output and log-sum-exp (FlashAttention-2,
arXiv 2307.08691). Scores are held transposed, keys by queries: softmax then reduces over the major
axis and nearly every product reads its operands along their rows, which XLA on CPU runs about
twice as fast.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

_CACHED_SCORES = 2**18  # of short sequences so many are worked on at a time (1 MiB)
_BLOCK = 512  # queries (forward) or keys (backward) at a time, more if they have few scores each
MASKED = -1e30


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Attention of q [B, N, K, d] to k and v [B, M, K, d], keys by mask bool [B, M] or all.

    Returns:
      Output [B, N, K, d] in the dtype of q, and the log-sum-exp of the scores, float32 [B, K, N].
    """
    out, lse = _over_heads(_head_forward, (q, k, v), mask, scores=q.shape[1] * k.shape[1])
    return out.astype(q.dtype), lse


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    out: jax.Array,
    lse: jax.Array,
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v, in their dtypes, for the gradient of the output.

    `out` and `lse` may be of more keys than k has: then these are the gradients through this share
    of the keys.
    """
    arrays = (q, k, v, out, lse, grad)
    dq, dk, dv = _over_heads(_head_backward, arrays, mask, scores=q.shape[1] * k.shape[1])
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _over_heads(head: Callable, arrays: tuple, mask: jax.Array | None, scores: int) -> tuple:
    """Applies head(*arrays, mask) to each clip and head of [B, N or M, K, d] and [B, K, N].

    On CPU one after the other, so that the scores stay in cache; elsewhere all together. The
    choice falls when the program is lowered: one can compile for a TPU on a machine without.
    """

    def clip(operands, one_by_one):
        arrays, mask = operands
        arrays = tuple(_heads_first(x) for x in arrays)
        if one_by_one:
            arrays = tuple(x.astype(jnp.float32) for x in arrays)
        at_once = max(1, _CACHED_SCORES // scores)
        run = functools.partial(_run_head, head, mask)
        if one_by_one and at_once < arrays[0].shape[0]:
            results = lax.map(run, arrays, batch_size=at_once if at_once > 1 else None)
        else:
            results = jax.vmap(run)(arrays)
        return tuple(_heads_first(x) for x in results)

    return lax.platform_dependent(
        (arrays, mask),
        cpu=lambda operands: lax.map(functools.partial(clip, one_by_one=True), operands),
        default=jax.vmap(functools.partial(clip, one_by_one=False)),
    )


def _heads_first(x):
    return x.swapaxes(0, 1) if x.ndim == 3 else x  # log-sum-exps have heads first


def _run_head(head, mask, arrays):
    return head(*arrays, mask)


def _head_forward(q, k, v, mask):
    """Output [N, d] and log-sum-exp of the scores [N] of one head, a block of queries at a time."""

    def block(carry, q):
        scores = _scores(k, q, mask)
        highest = scores.max(0, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = weights.sum(0, keepdims=True)
        out = _dot(v.T, weights.astype(v.dtype)) / total
        return carry, (out.T, (highest + jnp.log(total))[0])

    return _over_blocks(block, (), _scaled(q), width=k.shape[0])[1]


def _head_backward(q, k, v, out, lse, grad, mask):
    """Gradients of q, k and v of one head, a block of keys at a time."""
    q = _scaled(q)
    # The softmax's own gradient: how much each query's output moves along the output gradient.
    along = (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1)[None]

    def block(dq, keys):
        k, v, mask = keys
        weights = jnp.exp(_scores(k, q, mask) - lse[None])
        dv = _dot(weights.astype(grad.dtype), grad)
        dscores = (weights * (_dot(v, grad.T) - along)).astype(q.dtype)
        # Turned around before the product, not as a part of it: XLA on CPU is then a fifth faster.
        return dq + _dot(lax.optimization_barrier(k.T), dscores), (_dot(dscores, q), dv)

    zeros = jnp.zeros(q.shape[::-1], jnp.float32)
    dq, (dk, dv) = _over_blocks(block, zeros, (k, v, mask), width=q.shape[0])
    return _scaled(dq.T), dk, dv


def _scaled(q):
    """Queries, or their gradients, over sqrt(d): cheaper than to scale each of the scores."""
    return q * q.shape[-1] ** -0.5


def _scores(k, q, mask):
    scores = _dot(k, q.T)
    return scores if mask is None else jnp.where(mask[:, None], scores, MASKED)


def _dot(a, b):
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _over_blocks(block: Callable, carry, rows, width: int):
    """lax.scan of `block` over nearly equal blocks of the leading axis; the last may be shorter.

    A block of n rows has n width scores.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    most = max(_BLOCK, _CACHED_SCORES // width)
    size = math.ceil(count / math.ceil(count / most))
    whole = count // size * size
    blocks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), rows)
    carry, results = lax.scan(block, carry, blocks)
    results = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), results)
    if whole < count:
        carry, last = block(carry, jax.tree.map(lambda x: x[whole:], rows))
        results = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), results, last)
    return carry, results
