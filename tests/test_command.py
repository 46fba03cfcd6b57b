"""Command lines end with a line of their own, not with a traceback."""

import signal
import subprocess
import sys

INTERRUPTED = """
import signal
from sora_jax import command
command.run(lambda argv: signal.raise_signal(signal.SIGINT))
"""


def test_ctrl_c_ends_a_command_without_a_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted\n")
