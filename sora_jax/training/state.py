"""The train state and one step of it."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh

from sora_jax.sharding import tree_shardings

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """What the loop trains: parameters, a loss, a score, pictures of the progress."""

    frozen: Any  # parameters that are used but not trained

    def init(self, key: jax.Array) -> Any:
        """Parameters boxed with their logical axes."""

    def loss(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """A scalar to minimise, and scalars to log."""

    def evaluate(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Scalars that are averaged over the held-out batches."""

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of one step on a batch, three forward passes."""

    def save(self, folder: Any, params: Any, scores: dict[str, Any]) -> None:
        """Writes a model folder, and pictures into it; `scores` are means of `evaluate`."""


class TrainState(struct.PyTreeNode):
    """Everything that a checkpoint holds besides the position in the data.

    Attributes:
      step: int32, batches seen.
      params, ema, opt_state: parameters, their moving average, the optimizer's state.
      bad_steps: int32, steps in a row whose loss or gradient was not finite, and were skipped.
      skipped: int32, all skipped steps.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    bad_steps: jax.Array
    skipped: jax.Array


def make_state(
    init: Callable[[jax.Array], Any], tx: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, Any]:
    """A fresh state laid out on the mesh, and its shardings.

    The layout of parameters, average and optimizer state alike comes from one abstract
    evaluation, before any memory is taken.
    """

    def create(key: jax.Array) -> TrainState:
        params = init(key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=tx.init(params),
            bad_steps=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )

    shardings = tree_shardings(jax.eval_shape(create, key), mesh)
    state = jax.jit(lambda key: nn.meta.unbox(create(key)), out_shardings=shardings)(key)
    return state, shardings


def make_train_step(
    task: Task, tx: optax.GradientTransformation, *, ema_decay: float
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """(state, frozen, batch, run_key) -> (state, metrics); jit it with state donated.

    A step whose loss or gradient is not finite changes nothing but the counters.
    """

    def train_step(
        state: TrainState, frozen: Any, batch: Batch, run_key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(run_key, state.step)
        (loss, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(
            state.params, frozen, batch, key
        )
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average follows closely at first, so that it is useful early.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema, 1.0 - decay)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        bad = jnp.where(finite, 0, 1)
        state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            opt_state=keep(opt_state, state.opt_state),
            bad_steps=(state.bad_steps + 1) * bad,
            skipped=state.skipped + bad,
        )
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "bad_steps": state.bad_steps,
            "skipped": state.skipped,
            **metrics,
        }
        return state, metrics

    return train_step
