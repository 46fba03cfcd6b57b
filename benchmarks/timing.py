"""How the benchmarks measure: in turn with a matrix product, whose rate is the machine's limit."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 2048


def once(function: Callable[..., Any], *args: Any) -> float:
    """Seconds of one call, its result awaited."""
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def measure(
    rows: dict[str, tuple[Callable[[], Any], float]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Seconds and share of the matmul peak of each row.

    Args:
      rows: name -> (a call that returns arrays, its floating-point operations).
      repeats: rounds; each runs every row once, between two matrix products.

    Returns:
      name -> (median seconds, median over rounds of its rate over the matmul's of that round).
    """
    x = jnp.ones((SIZE, SIZE))
    multiply = jax.jit(jnp.matmul)
    once(multiply, x, x)
    for call, _ in rows.values():
        once(call)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    shares: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, (call, flops) in rows.items():
            before = min(once(multiply, x, x) for _ in range(3))
            taken = once(call)
            after = min(once(multiply, x, x) for _ in range(3))
            peak = 2 * SIZE**3 / min(before, after)
            seconds[name].append(taken)
            shares[name].append(flops / taken / peak)
    return {
        name: (float(np.median(seconds[name])), float(np.median(shares[name]))) for name in rows
    }


def report(results: dict[str, tuple[float, float]]) -> None:
    """Prints the table, and the most memory this process ever had."""
    print(f"{'':>28}{'seconds':>10}{'of matmul peak':>17}")
    for name, (seconds, share) in results.items():
        print(f"{name:>28}{seconds:>10.3f}{100 * share:>15.0f} %")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process {peak:.2f} GiB")
