"""One run at a time in a work folder: two would mix their checkpoints."""

import contextlib
import fcntl
from collections.abc import Iterator

import jax

from sora_jax.training.remote import Folder, is_remote

LOCK = ".lock"


@contextlib.contextmanager
def claimed(workdir: Folder) -> Iterator[None]:
    """Keeps runs of other processes out of a work folder.

    Of several hosts the first one does it. The lock is the system's, not the file: it ends with
    the process however that ends. Folders in buckets and file systems without locks are not
    guarded.

    Raises:
      ValueError: another process trains there.
      OSError: the folder cannot be written to.
    """
    if is_remote(workdir) or jax.process_index() > 0:
        yield
        return
    with open(workdir / LOCK, "a") as file:
        try:
            # Not flock, which the loader's workers would inherit, and hold after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"another process trains in --workdir={workdir}: wait for it, end it, or choose "
                "another folder"
            ) from error
        except OSError:  # there are no locks here
            pass
        try:
            yield
        finally:
            if [each.name for each in workdir.iterdir()] == [LOCK]:  # refused before it began
                (workdir / LOCK).unlink()
