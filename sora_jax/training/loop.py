"""The loop that trains every model: batches in, checkpoints, metrics and model folders out."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from sora_jax.sharding import make_mesh
from sora_jax.training.checkpoint import Checkpoints
from sora_jax.training.hosts import StopSignal, wait_for_all
from sora_jax.training.metrics import Reporter, measure_peak
from sora_jax.training.placement import gather, place_batch, place_frozen
from sora_jax.training.remote import Folder, local_folder
from sora_jax.training.state import (
    Task,
    TrainState,
    abstract_state,
    jit_evaluate,
    jit_train_step,
    make_state,
)

logger = logging.getLogger("sora_jax")

# This many steps in a row without a finite loss end the run: it will not recover by itself.
MAX_BAD_STEPS = 10


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, how often, how smooth.

    Attributes:
      steps: length of the run.
      seed: of parameters and all training noise.
      ema_decay: of the moving average of the parameters.
      log_every, evaluate_every, checkpoint_every, save_every: in steps; `save_every` is for model
        folders with their pictures.
      keep: checkpoints that stay.
      accumulate: parts of a batch, whose gradients are summed: for the memory of one part.
    """

    steps: int
    seed: int
    ema_decay: float
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    save_every: int
    keep: int = 2
    accumulate: int = 1

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"config.loop.steps={self.steps} must not be negative")
        for name in ("log_every", "evaluate_every", "checkpoint_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"config.loop.{name}={getattr(self, name)} must be at least 1; for never, give "
                    "more than config.loop.steps"
                )
        for name in ("keep", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.loop.{name}={getattr(self, name)} must be at least 1")


class DivergedError(RuntimeError):
    """The loss was not finite too many times in a row."""


def evaluate(
    evaluate_step: Callable[..., dict[str, jax.Array]],
    params: Any,
    frozen: Any,
    batches: list[dict[str, np.ndarray]],
    mesh: Mesh,
    key: jax.Array,
) -> dict[str, Any]:
    """Means of the task's scores over all clips of the held-out batches."""
    totals: dict[str, Any] = {}
    clips = 0
    for i, batch in enumerate(batches):
        placed = place_batch(batch, mesh)
        scores = evaluate_step(params, frozen, placed, jax.random.fold_in(key, i))
        count = len(next(iter(placed.values())))
        clips += count
        for name, value in jax.device_get(scores).items():
            totals[name] = totals.get(name, 0.0) + value * count
    return {name: total / clips for name, total in totals.items()}


def train(
    task: Task,
    tx: optax.GradientTransformation,
    loader: Any,
    held_out: list[dict[str, np.ndarray]],
    config: LoopConfig,
    workdir: Folder,
    mesh: Mesh,
    on_save: Callable[[pathlib.Path], None] | None = None,
) -> TrainState:
    """Trains until `config.steps`, from the newest checkpoint in `workdir` if there is one.

    Args:
      task: what is trained.
      tx: the optimizer.
      loader: has `.iterator`, a grain iterator of batches (dicts of numpy arrays of this host).
      held_out: batches for the scores.
      config: lengths and intervals.
      workdir: gets `checkpoints/`, `events/` and `model/`.
      mesh: of all devices of all hosts.
      on_save: called with the model folder each time that one is written, on the first host alone:
        it may use the devices of that host.

    Returns:
      The last state.

    Raises:
      DivergedError: MAX_BAD_STEPS steps in a row had no finite loss.
    """
    root = jax.random.key(config.seed)
    init_key, run_key, evaluate_key = jax.random.split(root, 3)
    first = jax.process_index() == 0
    peak = measure_peak() * jax.device_count()
    with jax.set_mesh(mesh):
        frozen = place_frozen(task.frozen, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep)
        if checkpoints.latest() is None:
            state, shardings = make_state(task.init, tx, init_key, mesh, task.start)
        else:  # without a fresh state beside it, for which there may be no room
            state = abstract_state(task.init, tx, mesh)
            shardings = jax.tree.map(lambda x: x.sharding, state)
            state = checkpoints.restore(state, shardings, loader.iterator)
            logger.info("resumed from step %d", int(state.step))
        start = int(state.step)
        if start > config.steps:
            logger.warning(
                "the checkpoint is of step %d, past config.loop.steps=%d: nothing is left to "
                "train; raise config.loop.steps to go on",
                start,
                config.steps,
            )
        count = sum(x.size for x in jax.tree.leaves(state.params))
        logger.info("%.2f M parameters; matmul peak %.0f GFLOP/s", count / 1e6, peak / 1e9)

        smooth = {"ema_decay": config.ema_decay, "accumulate": config.accumulate}
        train_step = jit_train_step(task, tx, mesh, shardings, **smooth)
        evaluate_step = jit_evaluate(task, mesh)
        reporter = Reporter(
            workdir / "events" if first else None,
            steps=config.steps,
            every=config.log_every,
            peak=peak,
            start=start,
        )
        compiled: dict[tuple, float] = {}
        late: tuple | None = None

        def read_late() -> None:
            """Reads the metrics of the step before, so that the devices never wait for us."""
            nonlocal late
            if late is None:
                return
            step, metrics, clips, flops, timed = late
            late = None
            metrics = jax.device_get(metrics)
            if metrics["bad_steps"] > 0:
                logger.warning(
                    "step %d skipped: loss %s, gradient norm %s",
                    step,
                    metrics["loss"],
                    metrics["gradient_norm"],
                )
            if metrics["bad_steps"] >= MAX_BAD_STEPS:
                raise DivergedError(
                    f"no finite loss in the last {MAX_BAD_STEPS} steps before step {step}; lower "
                    "the learning rate, or look at the data, and start again from the checkpoint"
                )
            finite = {k: v for k, v in metrics.items() if np.isfinite(v)}
            reporter.step(step, finite, clips=clips, flops=flops, timed=timed)

        def score(step: int, save: bool) -> None:
            scores = evaluate(evaluate_step, state.ema, frozen, held_out, mesh, evaluate_key)
            reporter.write(step, {"held_out": scores})
            logger.info(
                "step %d held out: %s",
                step,
                " ".join(f"{k} {v:.4f}" for k, v in scores.items() if np.ndim(v) == 0),
            )
            if save:
                params = gather(state.ema, keep=first)
                if first:
                    # The other hosts take no part in what is computed for the model folder.
                    alone = make_mesh(devices=jax.local_devices()[:1])
                    with jax.set_mesh(alone), local_folder(workdir / "model") as folder:
                        task.save(folder, params, scores)
                        if on_save is not None:
                            on_save(folder)
                wait_for_all(f"the model of step {step} is written")

        batches: Iterator = loader.iterator
        with contextlib.ExitStack() as ends:
            stop = StopSignal(mesh)
            ends.callback(stop.restore)
            ends.callback(reporter.close)
            # The last to come is the first to end: a signal must not cut a checkpoint off.
            ends.push(checkpoints)
            for step in range(start + 1, config.steps + 1):
                # The devices are still at the step before while this one's batch comes to them.
                batch = place_batch(next(batches), mesh)
                stop.compare()
                shape = tuple((k, v.shape) for k, v in sorted(batch.items()))
                timed = shape in compiled
                if not timed:
                    shapes = ", ".join(f"{k} {'x'.join(map(str, sides))}" for k, sides in shape)
                    logger.info("compiling for %s, which may take minutes", shapes)
                    began = time.perf_counter()
                    compiled[shape] = task.flops(batch)
                    state, metrics = train_step(state, frozen, batch, run_key)
                    jax.block_until_ready(metrics)
                    seconds = time.perf_counter() - began
                    logger.info("compiled for %s in %.1f s", shapes, seconds)
                    reporter.pause(seconds)
                else:
                    state, metrics = train_step(state, frozen, batch, run_key)
                read_late()
                clips = next(iter(batch.values())).shape[0]
                late = (step, metrics, clips, compiled[shape], timed)

                last = step == config.steps or stop.asked()
                keep = last or step % config.checkpoint_every == 0
                save = step % config.save_every == 0
                judge = bool(held_out) and (save or step % config.evaluate_every == 0)
                if keep or judge:
                    read_late()  # waits for the step, whose time belongs to the rates
                began = time.perf_counter()
                if keep:
                    checkpoints.save(state, batches)
                if last:
                    break
                if judge:
                    score(step, save)
                reporter.pause(time.perf_counter() - began)
            read_late()
            if held_out and int(state.step) == config.steps:
                # Also where nothing was left to train: the last start may have ended before this.
                score(config.steps, save=True)
            elif stop.asked():
                logger.info("asked to stop: saved step %d", int(state.step))
        return state
