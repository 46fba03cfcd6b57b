"""Two processes that take turns, so that neither's threads disturb what the other one measures.

Free of jax and of torch: each process imports its own.
"""

import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MATMUL = "matmul"  # the call, besides what is compared, that tells the machine's limit
MEMORY = "memory"
_ANSWER = "answer: "  # before each one: libraries print too
_PAUSE = 0.05  # seconds between turns: threads out of work spin for a while before they sleep


def serve(make_calls: Callable[..., Mapping[str, Callable[[], Any]]]) -> None:
    """Makes calls of the JSON value in the first line of stdin, and runs those that the rest name.

    The answer to each is its seconds, and to `MEMORY` the most bytes the process ever had.
    """
    calls = make_calls(**json.loads(sys.stdin.readline()))
    for call in calls.values():
        call()  # compiles
    for line in sys.stdin:
        name = line.strip()
        if name == MEMORY:
            answer: float = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        else:
            start = time.perf_counter()
            calls[name]()
            answer = time.perf_counter() - start
        print(f"{_ANSWER}{answer}", flush=True)


class Worker:
    """A process that serves; a context manager, at whose end it ends."""

    def __init__(self, module: str, what: Mapping[str, Any]):
        """Starts `python -m MODULE`, which makes its calls of JSON values."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._module = module
        self._send(json.dumps(what))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have ended before
            self._process.stdin.close()
        self._process.wait()

    def ask(self, name: str) -> float:
        """The answer to a call, see `serve`.

        Raises:
          RuntimeError: the process ended instead; it has said why on stderr.
        """
        time.sleep(_PAUSE)
        self._send(name)
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                return float(line.removeprefix(_ANSWER))
        raise RuntimeError(f"python -m {self._module} ended, see above")

    def _send(self, line: str) -> None:
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise RuntimeError(f"python -m {self._module} ended, see above") from error


def take_turns(
    workers: Sequence[Worker], names: Sequence[str], repeats: int
) -> list[dict[str, list[float]]]:
    """Seconds of each worker's calls; in each round all take their turn, the first one last next.

    The matrix product comes before and after, and the faster one counts.
    """
    seconds: list[dict[str, list[float]]] = [
        {name: [] for name in (MATMUL, *names)} for _ in workers
    ]
    for round in range(repeats):
        order = list(zip(workers, seconds))
        for worker, taken in order if round % 2 else reversed(order):
            before = worker.ask(MATMUL)
            for name in names:
                taken[name].append(worker.ask(name))
            taken[MATMUL].append(min(before, worker.ask(MATMUL)))
    return seconds
