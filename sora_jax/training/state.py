"""The train state and one step of it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.sharding import compiler_options, constrain, tree_shardings, ways
from sora_jax.training.placement import place

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """What the loop trains: parameters, a loss, a score, pictures of the progress."""

    # Parameters that are used but not trained, boxed with logical axes where they are to be split.
    frozen: Any
    start: Any  # parameters to begin with, for some branches of the tree or all; None to draw them

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


def _begin(drawn: Any, start: Any) -> Any:
    """`drawn`, a nested dict of boxes with logical axes, with the values of `start` where it has.

    Raises:
      ValueError: a shape that is not that of the parameter.
    """
    if isinstance(drawn, Mapping):
        return {name: _begin(x, start[name]) if name in start else x for name, x in drawn.items()}
    if jnp.shape(start) != drawn.value.shape:
        raise ValueError(f"shape {jnp.shape(start)} in place of {drawn.value.shape}")
    return drawn.replace_boxed(start.astype(drawn.value.dtype))


def _create(
    init: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
    start: Any = None,
) -> TrainState:
    params = init(key) if start is None else _begin(init(key), start)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        bad_steps=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_state(
    init: Callable[[jax.Array], Any], tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state's shapes, types and shardings on the mesh: no memory is taken.

    The layout of parameters, average and optimizer state alike comes from one evaluation.
    """
    boxed = jax.eval_shape(partial(_create, init, tx), jax.random.key(0))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        tree_shardings(boxed, mesh),
    )


def make_state(
    init: Callable[[jax.Array], Any],
    tx: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    start: Any = None,
) -> tuple[TrainState, Any]:
    """A fresh state laid out on the mesh, and its shardings; `start` as `Task` has it."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(init, tx, mesh))

    def create(key: jax.Array, start: Any) -> TrainState:
        return nn.meta.unbox(_create(init, tx, key, start))

    if start is not None:
        # An argument and split, not a constant of the program: these may be many gigabytes.
        start = place(start, _branches(shardings.params, start))
    return jax.jit(create, out_shardings=shardings)(key, start), shardings


def _branches(tree: Any, like: Any) -> Any:
    """The branches of nested dicts that `like` has too."""
    if not isinstance(like, Mapping):
        return tree
    return {name: _branches(tree[name], branch) for name, branch in like.items()}


def _in_parts(batch: Batch, parts: int) -> Batch:
    """Arrays [B, ...] as [parts, B / parts, ...], each part with clips of every device."""

    def one(name: str, x: jax.Array) -> jax.Array:
        if x.shape[0] % (parts * ways("batch")):
            raise ValueError(
                f"config.loop.accumulate={parts}: the {x.shape[0]} clips of a batch ({name} "
                f"{x.shape}) do not make that many parts with as many clips for each of the "
                f"{ways('batch')} that share it; choose another number, or raise "
                "config.data.token_budget"
            )
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, (None, "batch", *(None,) * (x.ndim - 2)))

    return {name: one(name, x) for name, x in batch.items()}


def _differentiate(
    task: Task, params: Any, frozen: Any, batch: Batch, key: jax.Array, parts: int
) -> tuple[jax.Array, Metrics, Any]:
    """Loss, metrics and gradients: means over `parts` of the batch, one after the other."""
    differentiate = jax.value_and_grad(task.loss, has_aux=True)
    if parts == 1:
        (loss, metrics), grads = differentiate(params, frozen, batch, key)
        return loss, metrics, grads

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, tuple[jax.Array, Metrics]]:
        (loss, metrics), grads = differentiate(params, frozen, *part)
        return jax.tree.map(lambda a, b: a + b / parts, total, grads), (loss, metrics)

    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, parts)
    grads, (losses, metrics) = jax.lax.scan(add, zeros, (_in_parts(batch, parts), keys))
    # A metric may be without a value in a part, such as that of levels which it had not drawn.
    return jnp.mean(losses), jax.tree.map(lambda x: jnp.nanmean(x, axis=0), metrics), grads


def make_train_step(
    task: Task, tx: optax.GradientTransformation, *, ema_decay: float, accumulate: int = 1
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """(state, frozen, batch, run_key) -> (state, metrics); jit it with state donated.

    A step whose loss or gradient is not finite changes nothing but the counters. With `accumulate`
    a batch is taken in that many parts, for the memory of one.
    """

    def train_step(
        state: TrainState, frozen: Any, batch: Batch, run_key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(run_key, state.step)
        loss, metrics, grads = _differentiate(task, state.params, frozen, batch, key, accumulate)
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


def jit_train_step(
    task: Task, tx: optax.GradientTransformation, mesh: Mesh, shardings: TrainState, **settings: Any
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """`make_train_step`, compiled for a mesh with the state donated; `settings` are its own.

    Args:
      task, tx: what is trained, and by what.
      mesh: of the state.
      shardings: of the state, shaped like it.
    """
    return jax.jit(
        make_train_step(task, tx, **settings),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options(mesh),
    )


def jit_evaluate(task: Task, mesh: Mesh) -> Callable[..., Metrics]:
    """`Task.evaluate`, compiled for a mesh: every host can read all of the scores."""
    return jax.jit(
        task.evaluate,
        out_shardings=NamedSharding(mesh, PartitionSpec()),
        compiler_options=compiler_options(mesh),
    )
