"""Checkpoints of the train state and the position in the data, through orbax.

Each one is read back once it is written, and only then is an older one removed; one that cannot be
read any more is passed over for the one before it. Hosts share this work array by array.
"""

import concurrent.futures
import contextlib
import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding

from sora_jax.training.checksums import device_checksums, host_checksum, names
from sora_jax.training.hosts import all_true, wait_for_all
from sora_jax.training.remote import Folder, is_remote
from sora_jax.training.state import TrainState

logger = logging.getLogger("sora_jax")

# Bytes of arrays that are read back at once. One read walks the whole tree: array by array, the 450
# of a small VAE take a hundred times as long.
_TOGETHER = 2**28


class Checkpoints:
    """The checkpoints of one run, written in the background and complete or absent.

    A context: its end waits for what is being written. All hosts call all methods alike.

    Args:
      folder: on a file system or in a bucket; made if missing.
      keep: how many of the newest stay.
    """

    def __init__(self, folder: Folder, *, keep: int):
        self.folder = epath.Path(folder if is_remote(folder) else os.path.abspath(folder))
        self._keep = keep
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "checksums": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(create=True, cleanup_tmp_directories=True),
        )
        self._reader = concurrent.futures.ThreadPoolExecutor(1)
        self._written: tuple[int, concurrent.futures.Future] | None = None
        self._damaged: set[int] = set()

    def latest(self) -> int | None:
        """Step of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: Any) -> None:
        """Starts writing; returns as soon as the arrays are copied from the devices."""
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        self._settle()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # A plain step number, the same on every host, so that their count may change.
                data=ocp.args.JsonSave(iterator.get_state()),
                checksums=ocp.args.JsonSave(device_checksums(state)),
            ),
        )
        self._written = step, self._reader.submit(self._read_back, step)

    def _read_back(self, step: int) -> str | None:
        self._manager.wait_until_finished()
        return self._fault(step)

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written; if it is sound, old ones go."""
        if self._written is None:
            return
        (step, reading), self._written = self._written, None
        fault = reading.result()
        if fault is not None:
            logger.warning(
                "the checkpoint of step %d was written, but does not read back (%s): those before "
                "it stay; check the disk of %s",
                *(step, fault, self.folder),
            )
        if not all_true(fault is None):
            self._damaged.add(step)
            return
        sound = [s for s in sorted(self._manager.all_steps()) if s not in self._damaged]
        for old in sound[: -self._keep]:
            self._manager.delete(old)

    def _fault(self, step: int) -> str | None:
        """What is wrong with this host's part of a checkpoint, or None; read twice before a yes."""
        return self._read(step) and self._read(step)

    def _read(self, step: int) -> str | None:
        folder = self.folder / str(step)
        try:
            read = ocp.JsonCheckpointHandler().restore
            position = read(folder / "data", args=ocp.args.JsonRestore())
            if not isinstance(position, dict):
                return "no position in the data"
            sums = None
            if (folder / "checksums").exists():  # else it is of an earlier version
                sums = read(folder / "checksums", args=ocp.args.JsonRestore())
            handler = ocp.PyTreeCheckpointHandler()
            leaves, structure = jax.tree.flatten(handler.metadata(folder / "state").tree)
            # Only reading onto devices needs these.
            for file in _share(sorted((folder / "state" / "array_metadatas").iterdir())):
                _check_layouts(json.loads(file.read_text()), leaves)
            found = names(jax.tree.unflatten(structure, leaves))
            if sums is not None and set(found) != set(sums):
                return f"{sorted(set(found) ^ set(sums))[0]} is not in both of its lists of arrays"
            restore = jax.tree.unflatten(
                structure, [ocp.RestoreArgs(restore_type=np.ndarray)] * len(leaves)
            )
            for together in _groups(_share(range(len(leaves))), leaves):
                wanted = [x if i in together else ocp.PLACEHOLDER for i, x in enumerate(leaves)]
                args = ocp.args.PyTreeRestore(jax.tree.unflatten(structure, wanted), restore)
                arrays = jax.tree.leaves(handler.restore(folder / "state", args=args))
                for i in together:
                    x = np.asarray(arrays[i])
                    if x.shape != tuple(leaves[i].shape):
                        return f"{found[i]} has shape {x.shape} instead of {leaves[i].shape}"
                    if sums is not None and host_checksum(x) != sums[found[i]]:
                        return f"{found[i]} has other values than were written"
        except (MemoryError, PermissionError):  # nothing that the checkpoint could help
            raise
        except Exception as error:  # whatever a reader makes of damaged bytes
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return None

    def restore(self, state: TrainState, shardings: Any, iterator: Any) -> TrainState:
        """The newest checkpoint that can be read; `iterator` is moved to where it was.

        Newer ones, which cannot, are set aside as `damaged-STEP`, with a warning.

        Args:
          state: a state of the same structure, concrete or abstract.
          shardings: where its arrays are to lie, which may differ from where they lay.
          iterator: a grain iterator over the same data.

        Raises:
          ValueError: none can be read, or it is of another configuration.
        """
        faults: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            fault = self._fault(step)
            if all_true(fault is None):
                break
            faults[step] = fault or "damaged, says another host"
        else:
            reasons = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
            raise ValueError(
                f"no checkpoint in {self.folder} can be read ({reasons}): copy them again, or "
                "begin anew in another --workdir"
            )

        def abstract(x: jax.Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        self._check(self._manager.item_metadata(step)["state"], state)
        for damaged, fault in faults.items():
            self._set_aside(damaged, fault, instead=step)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(abstract, state, shardings)),
                data=ocp.args.JsonRestore(),
            ),
        )
        iterator.set_state(restored["data"])
        return restored["state"]

    def _set_aside(self, step: int, fault: str, *, instead: int) -> None:
        target = self.folder / f"damaged-{step}"
        logger.warning(
            "the checkpoint of step %d cannot be read (%s): going on from step %d; what is left "
            "of it is now %s",
            *(step, fault, instead, target),
        )
        if jax.process_index() == 0:
            if target.exists():  # the same step was damaged before
                target.rmtree()
            (self.folder / str(step)).rename(target)
        wait_for_all(f"{target} is set aside")
        self._manager.reload()

    def _check(self, saved: Any, state: TrainState) -> None:
        def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
            return dict(zip(names(tree), (tuple(x.shape) for x in jax.tree.leaves(tree))))

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
        """Waits until all that was started is written and read back, and closes.

        Raises what went wrong with that, unless an error is on its way already, which comes first.
        """
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # another host may be dead, and what is being written waits for it
        try:
            with contextlib.closing(self._manager), self._reader:
                if error is None:
                    self._settle()
                self._manager.wait_until_finished()
        except Exception as late:
            if error is None:
                raise
            logger.warning("a checkpoint was not written either: %s", late)


def _check_layouts(said: Any, leaves: Sequence[Any]) -> None:
    """Raises unless a file of array_metadatas says how arrays that there are were cut up."""
    dimensions = {leaf.name: len(leaf.shape) for leaf in leaves}
    for one in said["array_metadatas"]:
        one = one["array_metadata"]
        for key in ("write_shape", "chunk_shape"):
            if len(one[key]) != dimensions[one["param_name"]]:
                raise ValueError(f"the {key} of {one['param_name']} is {one[key]}")
        one["ext_metadata"]


def _share(items: Sequence[Any]) -> Sequence[Any]:
    """Those of the items that this host is to look at."""
    return items[jax.process_index() :: jax.process_count()]


def _groups(indices: Sequence[int], leaves: Sequence[Any]) -> list[list[int]]:
    """The indices in groups whose arrays have at most _TOGETHER bytes, or one array alone."""
    groups, room = [], 0
    for i in indices:
        size = math.prod(leaves[i].shape) * np.dtype(leaves[i].dtype).itemsize
        if not groups or size > room:
            groups.append([])
            room = _TOGETHER
        groups[-1].append(i)
        room -= size
    return groups
