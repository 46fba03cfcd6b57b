"""Checkpoints of the train state and the position in the data, through orbax."""

import contextlib
import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from sora_jax.training.state import TrainState

logger = logging.getLogger("sora_jax")


class Checkpoints:
    """The checkpoints of one run, written in the background and complete or absent.

    A context: its end waits for what is being written.

    Args:
      folder: absolute path or gs:// url; made if missing.
      keep: how many of the newest stay.
    """

    def __init__(self, folder: pathlib.Path | str, *, keep: int):
        self._manager = ocp.CheckpointManager(
            folder,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )
        self.folder = folder

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: Any) -> None:
        """Starts writing; returns as soon as the arrays are copied from the devices."""
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # A plain step number, the same on every host, so that their count may change.
                data=ocp.args.JsonSave(iterator.get_state()),
            ),
        )

    def restore(self, state: TrainState, shardings: Any, iterator: Any) -> TrainState:
        """The newest checkpoint; `iterator` is moved to where it was.

        Args:
          state: a state of the same structure, concrete or abstract.
          shardings: where its arrays are to lie, which may differ from where they lay.
          iterator: a grain iterator over the same data.

        Raises:
          ValueError: the checkpoint is of another configuration.
        """
        step = self._manager.latest_step()

        def abstract(x: jax.Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        saved = self._manager.item_metadata(step)["state"]
        self._check(saved, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(abstract, state, shardings)),
                data=ocp.args.JsonRestore(),
            ),
        )
        iterator.set_state(restored["data"])
        return restored["state"]

    def _check(self, saved: Any, state: TrainState) -> None:
        def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            return {
                jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
                for path, leaf in leaves
            }

        wanted = shapes(state.params)
        found = shapes(saved.tree["params"])
        for name in sorted(set(wanted) | set(found)):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"the checkpoint in {self.folder} is of another configuration: {name} is "
                    f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} in the "
                    "config; use the config of that run, or another --workdir"
                )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Waits until all that was started is written, and closes.

        Raises what went wrong with that, unless an error is on its way already, which comes first.
        """
        try:
            with contextlib.closing(self._manager):
                self._manager.wait_until_finished()
        except Exception as late:
            if error is None:
                raise
            logger.warning("a checkpoint was not written either: %s", late)
