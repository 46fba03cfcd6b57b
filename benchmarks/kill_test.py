"""Kills a run over and over, and counts what it loses: python -m benchmarks.kill_test [kills]

A process of `train.py` on rendered shapes, with tiny networks, is started, killed with SIGKILL at
a random moment of its training, and started again, on the same work folder. It must never lose a
checkpoint that was whole, and no more than the steps since: one that was being written may be lost
as well.
"""

import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
EVERY = 5  # steps between two checkpoints
PROGRAM = ("train.py", "--config=tests/tiny_vae.py")
FLAGS = ("--config.data.folder=", "--config.loop.steps=1000000", "--config.loop.log_every=1")
# It is starts that take the time: less is optimised, and everything compiled is kept.
ENVIRONMENT = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}


def whole_checkpoints(workdir: pathlib.Path) -> list[int]:
    """Steps of those that were renamed to their final name, ascending."""
    folder = workdir / "checkpoints"
    return sorted(int(x.name) for x in folder.glob("*") if x.name.isdigit())


def kill_once(command: Sequence[str], workdir: pathlib.Path, seconds: float) -> dict[str, int]:
    """Runs the command until it has trained for some time, and kills it.

    Returns:
      `resumed`: step at which it began, `reached`: the last one that it told of, `saved`: that of
      the newest checkpoint which it left.

    Raises:
      RuntimeError: it ended by itself.
    """
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines, trains = [], threading.Event()

    def listen() -> None:
        for line in process.stderr:
            lines.append(line)
            if re.search(r" step \d+/", line):
                trains.set()
        trains.set()

    listener = threading.Thread(target=listen)
    listener.start()
    trains.wait()
    time.sleep(seconds)
    process.kill()
    process.wait()
    listener.join()
    said = "".join(lines)
    if process.returncode != -9:
        raise RuntimeError(f"the run ended by itself:\n{said}")
    if "cannot be read" in said:
        raise RuntimeError(f"a checkpoint was damaged:\n{said}")
    resumed = re.search(r"resumed from step (\d+)", said)
    steps = re.findall(r" step (\d+)/", said)
    return {
        "resumed": int(resumed[1]) if resumed else 0,
        "reached": int(steps[-1]),
        "saved": max(whole_checkpoints(workdir), default=0),
    }


def kill(kills: int, program: Sequence[str] = PROGRAM, longest: float = 3.0) -> str:
    """Kills a run so many times, up to `longest` seconds after its first step, and sums up.

    Raises:
      RuntimeError: something was lost that should not have been.
    """
    generator, lost, before = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        command = [sys.executable, *program, f"--workdir={workdir}", *FLAGS]
        command.append(f"--config.loop.checkpoint_every={EVERY}")
        for number in range(1, kills + 1):
            seen = kill_once(command, workdir, generator.uniform(0.0, longest))
            if seen["resumed"] != before:
                raise RuntimeError(f"{before} was saved, and {seen['resumed']} was found again")
            if seen["saved"] < seen["resumed"]:
                raise RuntimeError(f"the checkpoint of step {before} is gone")
            before = seen["saved"]
            lost.append(seen["reached"] - seen["saved"])
            print(f"kill {number}: {seen}, lost {lost[-1]} steps", flush=True)
    if max(lost) > 2 * EVERY:
        raise RuntimeError(f"{max(lost)} steps were lost, with a checkpoint every {EVERY}")
    return (
        f"{kills} kills, {before} steps kept: no checkpoint lost, at most {max(lost)} steps at "
        f"once, a checkpoint every {EVERY}"
    )


if __name__ == "__main__":
    print(kill(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
