"""Compiles a plan in a process of its own: what a compiler that aborts takes down is only that.

The TPU compiler ends the process where a check of its own fails, and holds much memory afterwards.
"""

import dataclasses
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
from multiprocessing.connection import Connection

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sora_jax.pod.chips import GIB, Slice, devices
from sora_jax.pod.programs import WORKS, Work
from sora_jax.pod.sizes import Sizes
from sora_jax.sharding import make_mesh

_TELL_EVERY = 30.0  # seconds

logger = logging.getLogger("sora_jax")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to compile: a run's config, with its mesh and remat, on a slice.

    Attributes:
      config: of `train.py`; its mesh is the plan's.
      topology: the slice.
      sizes: of its networks and clips.
      clips: of the global batch.
      work: a key of `programs.WORKS`.
    """

    config: ConfigDict
    topology: Slice
    sizes: Sizes
    clips: int
    work: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What the compiler made of a plan.

    Attributes:
      error: why it made nothing, one line; empty if it did. The rest is then missing.
      text: of the optimized program.
      memory: numbers of `Compiled.memory_analysis`, bytes a chip.
      unread: indices of the arguments, flattened, that the program does not read.
      flops: of `Compiled.cost_analysis`.
      seconds: that it took.
    """

    error: str
    text: str = ""
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    unread: tuple[int, ...] = ()
    flops: float = 0.0
    seconds: float = 0.0


def plan_mesh(config: ConfigDict, topology: Slice) -> Mesh:
    """The mesh of a config on a slice's devices, which can be compiled for but not run on.

    Raises:
      ValueError: its sizes do not fill the slice, or the compiler is not installed.
    """
    return make_mesh(dict(config.mesh), devices(topology))


def trace(plan: Plan, mesh: Mesh) -> Work:
    """The plan's program with the shapes of its arguments.

    Raises:
      ValueError: a size that the mesh does not divide.
    """
    return WORKS[plan.work](plan.config, plan.sizes, mesh, plan.clips)


def compile_plan(plan: Plan, name: str) -> Result:
    """Compiles, and tells from time to time that it still does.

    Args:
      plan: what.
      name: of the plan, for the log.
    """
    began = time.monotonic()
    logger.info("compiling %s", name)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile() as said:
        process = context.Process(target=_compile, args=(plan, theirs, said.name), daemon=True)
        process.start()
        theirs.close()
        try:
            while not ours.poll(_TELL_EVERY):
                logger.info("still compiling, %.0f s", time.monotonic() - began)
            result = ours.recv()
        except EOFError:
            process.join()
            result = Result(_last_words(process.exitcode, said.read().decode(errors="replace")))
        process.join()
    seconds = time.monotonic() - began
    outcome = f"no program: {result.error}" if result.error else "compiled"
    logger.info("%s, %.1f s", outcome, seconds)
    return dataclasses.replace(result, seconds=seconds)


def _compile(plan: Plan, connection: Connection, said: str) -> None:
    """Runs in the process; what the compiler says goes to the file `said`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.pop("XLA_FLAGS", None)  # one of another backend would end the TPU's compiler
    mesh = plan_mesh(plan.config, plan.topology)
    work = trace(plan, mesh)
    try:
        with jax.set_mesh(mesh):
            compiled = work.step.lower(*work.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        connection.send(Result(_one_line(error)))
        return
    stats = compiled.memory_analysis()
    memory = {name: getattr(stats, name) for name in dir(stats) if name.endswith("_in_bytes")}
    peak = memory.get("peak_memory_in_bytes", 0) / GIB
    try:
        text, flops = compiled.as_text(), compiled.cost_analysis()["flops"]
    except jax.errors.JaxRuntimeError as error:
        # jaxlib does not know every instruction that libtpu makes.
        reason = f"it compiles, to a peak of {peak:.2f} GiB, but cannot be read: {_one_line(error)}"
        connection.send(Result(reason))
        return
    read = jax.tree.leaves(compiled.input_shardings[0], is_leaf=lambda x: x is None)
    arguments = jax.tree.leaves(work.arguments, is_leaf=lambda x: x is None)
    unread = tuple(
        index
        for index, (x, sharding) in enumerate(zip(arguments, read, strict=True))
        if x is not None and sharding is None
    )
    connection.send(Result("", text, memory, unread, flops))


def _end_with_parent() -> None:
    """Ends this process when the one that began it is gone, killed for instance."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _one_line(error: jax.errors.JaxRuntimeError) -> str:
    return " ".join(str(error).partition("See https://")[0].split())


def _last_words(status: int, said: str) -> str:
    """One line about a process that ended early."""
    lines = said.strip().splitlines() or ["it said nothing"]
    checks = [line for line in lines if "Check failed" in line]
    how = f"status {status}" if status >= 0 else signal.Signals(-status).name
    found = re.sub(r"^F\d+ [\d:.]+ +\d+ ", "", checks[0]) if checks else lines[-1]
    return f"the compiler ended with {how}: {found}; try another mesh or config.remat"
