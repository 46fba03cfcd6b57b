"""A work folder belongs to one process, for as long as that lives."""

import subprocess
import sys

import pytest

from sora_jax.training.claim import claimed

HOLD = """
import pathlib, sys
from sora_jax.training.claim import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_is_gone(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another process trains in --workdir=.*: wait"):
            claimed(tmp_path).__enter__()
        other.kill()
        other.wait()
    with claimed(tmp_path):
        pass
