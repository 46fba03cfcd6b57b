"""Commands of ours, started in the environment of one device."""

import os
import pathlib
import re
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """That of one device, where every compilation is kept.

    Without the caches of XLA itself, whose folder would be a part of each compilation's key.
    """
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }


def start(*arguments, **more) -> subprocess.Popen:
    """A command that begins; `more` goes into its environment."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**environment(), **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process) -> tuple[int, str]:
    """Exit status and standard error of a command."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def succeed(*arguments, **more) -> str:
    """The standard error of a command that must work."""
    status, said = finish(start(*arguments, **more))
    assert status == 0, said
    return said


def wait_for(process, happened) -> None:
    """Reads what a process says until happened(line)."""
    said = []
    for line in process.stderr:
        said.append(line)
        if happened(line):
            return
    raise AssertionError(f"ended too early:\n{''.join(said)}")
