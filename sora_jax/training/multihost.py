"""Joining the hosts of a run, before anything touches a device.

On a TPU slice of several hosts everything is read from the machine; elsewhere the three flags of
`train.py` say it. A single machine joins nothing.
"""

import faulthandler
import importlib.util
import logging
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax

logger = logging.getLogger("sora_jax")

# A host that is silent for this long is dead to the others, which then end.
HEARTBEAT_SECONDS = 30
# How long a host waits for the others to come, and at the end for the others to go.
START_SECONDS = 300
END_SECONDS = 30

_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


def join(address: str | None, count: int | None, index: int | None, environment: Mapping) -> None:
    """Joins the other processes of the run, if it has others.

    Args:
      address: HOST:PORT of process 0; None where the machine is to say.
      count: processes of the run, likewise.
      index: number of this one, likewise.
      environment: of the process.

    Raises:
      ValueError: the flags make no sense, or the hosts cannot meet.
    """
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    if any(value is not None for value in given.values()):
        _check(address, count, index)
    elif not is_pod(environment, _has_tpu(environment), _read_metadata):
        return
    where = f"--coordinator_address={address}" if address else "the first host of the slice"
    # Where they do not come, jax ends the process without saying what it waited for.
    logger.info("waiting for the other hosts at %s, up to %d s", where, START_SECONDS)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            cluster_detection_method="deactivate" if address else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except RuntimeError as error:
        raise ValueError(
            f"the hosts cannot meet at {where} ({str(error).splitlines()[0]}): the first must have "
            "that port free, the others must be able to reach it, and the command must be started "
            "on each of them"
        ) from error
    # jax would note SIGTERM and go on; until the loop listens for it, it ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # jax aborts where a host is silent; what all threads were doing would bury its reason.
    faulthandler.disable()


def leave(status: int) -> NoReturn:
    """Ends the process now: an orderly end would wait for hosts that may themselves wait for it."""
    for process in multiprocessing.active_children():
        process.terminate()
    sys.stderr.flush()
    os._exit(status)


def is_pod(
    environment: Mapping[str, str], has_tpu: bool, read_metadata: Callable[[str], str]
) -> bool:
    """Whether this machine is one of several that hold a TPU slice, or several slices, together.

    Args:
      environment: what GKE says is in it.
      has_tpu: whether there are TPUs that jax may use; without them nothing else is asked.
      read_metadata: the value of a key that Google Cloud keeps for a TPU VM; raises OSError.
    """
    if not has_tpu:
        return False
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    try:
        if "," in read_metadata("worker-network-endpoints"):
            return True
        slices = re.search(r"MEGASCALE_NUM_SLICES: *'?(\d+)", read_metadata("tpu-env"))
    except OSError:
        return False  # a TPU that is none of Google Cloud's VMs, such as a notebook's
    return slices is not None and int(slices[1]) > 1


def _check(address: str | None, count: int | None, index: int | None) -> None:
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        some = ", ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
        raise ValueError(
            f"{some} needs {' and '.join(missing)} beside it, such as "
            "--coordinator_address=10.0.0.1:8476 --num_processes=2 --process_id=0"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"--coordinator_address={address} is not HOST:PORT of process 0, such as 10.0.0.1:8476"
        )
    if count < 1:
        raise ValueError(f"--num_processes={count} must be at least 1")
    if not 0 <= index < count:
        raise ValueError(
            f"--process_id={index} must be 0 to {count - 1}, as --num_processes={count}; each "
            "process has its own number"
        )


def _has_tpu(environment: Mapping[str, str]) -> bool:
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return False
    devices = (*pathlib.Path("/dev").glob("accel[0-9]*"), *pathlib.Path("/dev/vfio").glob("[0-9]*"))
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _read_metadata(key: str) -> str:
    request = urllib.request.Request(_METADATA + key, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()
