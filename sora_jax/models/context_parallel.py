"""Attention of one sequence over several devices: by heads (Ulysses) and around a ring.

With c devices and K heads each, an all-to-all gives every device of a group of u = gcd(c, K) all
tokens of the group and K / u heads (DeepSpeed-Ulysses, arXiv 2309.14509). If c > u, keys and values
go around the c / u groups, and results are merged by their log-sum-exps (Ring Attention, arXiv
2310.01889).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name


class Kernel(NamedTuple):
    """Attention of arrays on one device, heads first: `splash.forward` and `splash.backward`."""

    forward: Callable
    backward: Callable


class Names(NamedTuple):
    """What rematerialisation policies know arrays by (`jax.checkpoint_policies`).

    Attributes:
      result: of the attention.
      sums: log-sum-exps of the scores, which the backward pass needs with the result.
      operands: queries, keys and values as the kernel takes them, None for no name. Kept, they
        spare the backward pass what was done to them, such as sending them to other devices.
    """

    result: str
    sums: str
    operands: str | None = None


class Ring(NamedTuple):
    """Where keys and values go: `hops` - 1 times from each device to the one `stride` further."""

    axis: str
    stride: int
    hops: int

    def turn(self, arrays: Any) -> Any:
        """The arrays of the device before."""
        size = self.stride * self.hops
        pairs = [(i, (i + self.stride) % size) for i in range(size)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), arrays)


def attend_locally(
    kernel: Kernel, names: Names, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Attention of q [B, N, K, d] to k and v [B, M, K, d] that are all on this device."""
    q, k, v = map(_swap, (q, k, v))
    return _swap(_attend(kernel, names, None, q, k, v, mask))


def attend_over_context(
    kernel: Kernel,
    names: Names,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    axis: str,
) -> jax.Array:
    """Attention to the tokens of all devices along a mesh axis; call it under `jax.shard_map`.

    Args:
      kernel, names: what to use, and how to call it.
      q, k, v: [B, N, K, d], this device's tokens.
      mask: bool [B, N], which of them may be attended to; None for all.
      axis: name of the mesh axis.

    Returns:
      [B, N, K, d], for this device's tokens.
    """
    size, heads = lax.axis_size(axis), q.shape[2]
    group = math.gcd(size, heads)
    ring = Ring(axis, group, size // group) if size > group else None
    q, k, v = map(_swap, (q, k, v))
    if group == 1:
        return _swap(_attend(kernel, names, ring, q, k, v, mask))
    groups = [[first + i for i in range(group)] for first in range(0, size, group)]
    exchange = partial(lax.all_to_all, axis_name=axis, axis_index_groups=groups, tiled=True)
    q, k, v = (exchange(x, split_axis=1, concat_axis=2) for x in (q, k, v))
    if mask is not None:
        mask = lax.all_gather(mask, axis, axis=1, axis_index_groups=groups, tiled=True)
    out = _attend(kernel, names, ring, q, k, v, mask)
    return _swap(exchange(out, split_axis=2, concat_axis=1))


def _swap(x: jax.Array) -> jax.Array:
    """[B, N, K, d] to [B, K, N, d], and back.

    What is kept for the backward pass is then laid out as the kernels want it. In any other order
    the TPU compiler chooses that layout as well, but not everywhere, and turns it around on the way
    from and to the host.
    """
    return x.swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(kernel, names, ring, q, k, v, mask):
    return _attend_forward(kernel, names, ring, q, k, v, mask)[0]


def _attend_forward(kernel, names, ring, q, k, v, mask):
    if names.operands:
        q, k, v = (checkpoint_name(x, names.operands) for x in (q, k, v))
    if ring is None:
        out, lse = kernel.forward(q, k, v, mask)
    else:
        out, lse = _ring_forward(kernel, ring, q, k, v, mask)
    out, lse = checkpoint_name(out, names.result), checkpoint_name(lse, names.sums)
    return out, (q, k, v, mask, out, lse)


def _attend_backward(kernel, names, ring, residuals, grad):
    if ring is None:
        return *kernel.backward(*residuals, grad), None
    return *_ring_backward(kernel, ring, *residuals, grad), None


_attend.defvjp(_attend_forward, _attend_backward)


def _ring_forward(kernel, ring, q, k, v, mask):
    def merge(out, lse, keys):
        share, share_lse = kernel.forward(q, *keys)
        both = jnp.logaddexp(lse, share_lse)
        kept, added = (jnp.exp(x - both)[..., None] for x in (lse, share_lse))
        return out * kept + share.astype(jnp.float32) * added, both

    def hop(carry, _):
        out, lse, keys = carry
        following = ring.turn(keys)  # travels while this device computes
        return (*merge(out, lse, keys), following), None

    # Not minus infinity: where all keys of a share are masked, differences must stay numbers.
    lse = jnp.full(q.shape[:3], jnp.finfo(jnp.float32).min, jnp.float32)
    carry = (jnp.zeros(q.shape, jnp.float32), lse, (k, v, mask))
    (out, lse, keys), _ = lax.scan(hop, carry, length=ring.hops - 1)
    out, lse = merge(out, lse, keys)
    return out.astype(q.dtype), lse


def _ring_backward(kernel, ring, q, k, v, mask, out, lse, grad):
    def add(dq, sums, keys):
        grads = kernel.backward(q, *keys, out, lse, grad)
        dq, dk, dv = (a + b.astype(jnp.float32) for a, b in zip((dq, *sums), grads))
        return dq, (dk, dv)

    def hop(carry, _):
        dq, sums, keys = carry
        following = ring.turn(keys)
        dq, sums = add(dq, sums, keys)
        return (dq, ring.turn(sums), following), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    carry = (zeros[0], tuple(zeros[1:]), (k, v, mask))
    (dq, sums, keys), _ = lax.scan(hop, carry, length=ring.hops - 1)
    dq, sums = add(dq, sums, keys)
    dk, dv = ring.turn(sums)  # home
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)
