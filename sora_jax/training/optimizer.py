"""Optimizers, through optax: AdamW, and Muon on the matrices with AdamW on the rest."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Layers at the ends, between data or levels and the residual stream, which AdamW suits better.
_ENDS = ("patch_in", "head", "text_in", "time_", "embedding")


def schedule(
    learning_rate: float, steps: int, warmup_steps: int, decay_share: float
) -> optax.Schedule:
    """A linear rise, a plateau, and a linear decay to zero over the last share of the run.

    Such a schedule loses nothing to a cosine, and its plateau can be prolonged (arXiv 2405.18392).
    """
    decay_steps = max(1, int(steps * decay_share))
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, max(1, warmup_steps)),
            optax.constant_schedule(learning_rate),
            optax.linear_schedule(learning_rate, 0.0, decay_steps),
        ],
        [warmup_steps, max(warmup_steps, steps - decay_steps)],
    )


def is_kernel(path: Any) -> bool:
    """Whether a parameter is a weight matrix or convolution: only those decay."""
    return "kernel" in jax.tree_util.keystr(path)


def muon_dimensions(params: Any) -> Any:
    """For each parameter which axes are its matrix's input and output, or None for AdamW.

    A convolution is a matrix from all that its window sees; scanned blocks hold one matrix a layer.
    """

    def one(path: Any, x: Any) -> MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path)
        if not is_kernel(path) or any(end in name for end in _ENDS):
            return None
        if x.ndim == 5:
            return MuonDimensionNumbers((0, 1, 2, 3), (4,))
        return MuonDimensionNumbers((x.ndim - 2,), (x.ndim - 1,))

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(
    *,
    learning_rate: float,
    muon_learning_rate: float,
    steps: int,
    warmup_steps: int,
    decay_share: float,
    weight_decay: float,
    b2: float,
    clip: float,
) -> optax.GradientTransformation:
    """AdamW, or Muon (Jordan et al. 2024; arXiv 2502.16982) for matrices if its rate is positive.

    Args:
      learning_rate: AdamW's, on the plateau of `schedule`.
      muon_learning_rate: Muon's, likewise; 0 leaves everything to AdamW.
      steps, warmup_steps, decay_share: see `schedule`.
      weight_decay: decoupled, on kernels.
      b2: decay of AdamW's second moment.
      clip: largest global norm of the gradient.
    """
    rate = schedule(learning_rate, steps, warmup_steps, decay_share)

    def mask(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)

    if muon_learning_rate:
        inner = muon(
            schedule(muon_learning_rate, steps, warmup_steps, decay_share),
            weight_decay=weight_decay,
            weight_decay_mask=mask,
            adam_b2=b2,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=muon_dimensions,
        )
    else:
        inner = optax.adamw(rate, b2=b2, weight_decay=weight_decay, mask=mask)
    return optax.chain(optax.clip_by_global_norm(clip), inner)
