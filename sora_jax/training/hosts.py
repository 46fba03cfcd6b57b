"""What the hosts of a run agree on while it runs: waiting for each other, and when to stop.

A run of a single process does none of it.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sora_jax.training.remote import Folder

logger = logging.getLogger("sora_jax")

# The first host may write a model with its samples for long; one that dies is noticed by others.
_PATIENCE_MS = 6 * 60 * 60 * 1000
# Within this time a file that one host wrote is to be seen by the others.
_SHARING_SECONDS = 30


def wait_for_all(name: str) -> None:
    """Returns once every host is here; `name` must be new. No device takes part in it."""
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE_MS)


def all_true(mine: bool) -> bool:
    """Whether every host says yes; all hosts must ask, and wait for it."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.int32(mine))))


def check_shared(folder: Folder) -> None:
    """Refuses a work folder that is not the same one on every host.

    Raises:
      ValueError: on every host alike.
    """
    if jax.process_count() == 1:
        return
    number = np.random.default_rng().integers(2**31, dtype=np.int32)
    file = folder / f".shared-{multihost_utils.broadcast_one_to_all(number)}"
    if jax.process_index() == 0:
        file.write_text("")
    deadline = time.monotonic() + _SHARING_SECONDS
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    seen = multihost_utils.process_allgather(np.int32(seen))
    if jax.process_index() == 0:
        file.unlink()
    if not np.all(seen):
        raise ValueError(
            f"--workdir={folder} is another folder on host {int(np.argmin(seen))} than on host 0: "
            "give one that all hosts share, on a network file system or a bucket (gs://...)"
        )


class StopSignal:
    """SIGTERM (preemption) and SIGINT ask the loop to save and end; it looks between steps.

    A signal to any host stops all hosts after the same step: before each step they begin to
    compare what they were told, on the devices, and the answer is there once the step before has
    ended, for which the loop waits anyhow.
    """

    def __init__(self, mesh: Mesh):
        self._told = False
        self._before: dict[int, Any] = {}
        self._compare = _any_of(mesh) if jax.process_count() > 1 else None
        self._answer: Any = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._tell)

    def restore(self) -> None:
        """Gives the signals back: in a notebook the process lives on."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def compare(self) -> None:
        """Begins to compare with the other hosts; all call it before each step."""
        if self._compare is not None:
            self._answer = self._compare(self._told)

    def asked(self) -> bool:
        """Whether the step that was just begun is the last: the same on all hosts."""
        return self._told if self._compare is None else bool(self._answer)

    def _tell(self, number: int, frame: Any) -> None:
        if not self._told:
            logger.info("asked to stop: the run saves and ends after this step")
        self._told = True


def _any_of(mesh: Mesh) -> Callable[[bool], jax.Array]:
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    reduce = jax.jit(jax.numpy.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def compare(mine: bool) -> jax.Array:
        flag = np.full(1, mine)
        return reduce(jax.make_array_from_callback((mesh.size,), sharding, lambda index: flag))

    return compare
