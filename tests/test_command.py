"""Command lines end with a line of their own, not with a traceback."""

import signal
import subprocess
import sys

INTERRUPTED = """
import signal
from sora_jax import command
# A shell starts what runs in its background without it.
signal.signal(signal.SIGINT, signal.default_int_handler)
command.run(lambda argv: signal.raise_signal(signal.SIGINT))
"""


def test_ctrl_c_ends_a_command_without_a_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")


LOGGED = """
from absl import logging
from sora_jax import command
def main(argv):
    try:
        raise ValueError("no 100 %\\nand more")
    except ValueError:
        logging.exception("saving %s failed.", "it")
command.run(main)
"""


def test_an_error_that_a_library_logs_takes_a_line():
    done = subprocess.run([sys.executable, "-c", LOGGED], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 0 and line.endswith("saving it failed. no 100 %")
