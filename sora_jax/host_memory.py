"""How this process gets its memory from the system."""

import ctypes
import functools
import mmap
import sys
import threading
import time
from pathlib import Path

# Parameters of glibc's mallopt, by the numbers of its malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Where one of these is, programs have its memory and not the host's.
_ACCELERATORS = ("accel[0-9]*", "vfio/[0-9]*", "nvidia[0-9]*")
_GROWTH = 2**27  # bytes; what a process may grow by until freed memory is looked through


def keep_freed_memory() -> None:
    """Lets memory that is freed wait for its next use instead of going back to the system.

    On CPU, XLA takes the memory of a program's intermediate results anew at every call, and the
    system fills each of its pages with zeros: a tenth of a train step and more. Threads that are
    there already keep to the old way, so this comes before the first use of jax. It does nothing
    where the machine has an accelerator, or a C library that is not glibc.

    A freed block is not always found again: a small neighbour that lives on can make it a few bytes
    too short for the next call of the same program. So a thread watches for the process to grow,
    and then gives back all that is free; what compiling a program left goes the same way.
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
    _watch()


@functools.cache
def _watch() -> None:
    """Starts the thread, once a process."""
    library = ctypes.CDLL(None)

    def watch() -> None:
        settled = resident_memory()
        while True:
            time.sleep(0.05)
            now = resident_memory()
            if now > settled + max(_GROWTH, settled // 16):
                library.malloc_trim(0)
                now = settled = resident_memory()
            settled = min(settled, now)

    threading.Thread(target=watch, name="freed memory", daemon=True).start()


def resident_memory() -> int:
    """Bytes that this process holds but for pages of files, which the system takes back at will."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * mmap.PAGESIZE
