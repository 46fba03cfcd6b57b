"""How this process gets its memory from the system."""

import ctypes
import sys
from pathlib import Path

import jax

# Parameters of glibc's mallopt, by the numbers of its malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Where one of these is, programs have its memory and not the host's.
_ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")
_COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax calls it for its listeners


def keep_freed_memory() -> None:
    """Lets memory that is freed wait for its next use instead of going back to the system.

    On CPU, XLA takes the memory of a program's intermediate results anew at every call, and the
    system fills each of its pages with zeros: a tenth of a train step and more. Threads that are
    there already keep to the old way, so this comes before the first use of jax. It does nothing
    where the machine has an accelerator, or a C library that is not glibc.

    What compiling a program has left, hundreds of megabytes, goes back all the same.
    """
    if sys.platform != "linux":
        return
    if any(next(Path("/dev").glob(pattern), None) for pattern in _ACCELERATORS):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(_ARENA_MAX, 1)  # others than the first give large blocks back at once
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)

    def trim(event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED and seconds > 1.0:
            library.malloc_trim(0)

    jax.monitoring.register_event_duration_secs_listener(trim)
