"""What sample.py proposes where memory is too little is something that it takes."""

import subprocess
import sys

import pytest
from commands import environment

from sora_jax.weights.lora_folder import save_lora

HINT = """
import sys
from absl import flags
from sora_jax import sample_flags

flags.FLAGS(sys.argv)
print(sample_flags.memory_hint())
"""


@pytest.mark.parametrize("adapted", [False, True])
def test_int8_is_proposed_only_without_adapters(tmp_path, adapted):
    """Not for the run that trained adapters either: they are not added to int8."""
    if adapted:
        save_lora(tmp_path / "run" / "model", {}, tmp_path, "", {})
    flags = ["--prompt=a", f"--checkpoint={tmp_path / 'run'}"]
    said = subprocess.run(
        [sys.executable, "-c", HINT, *flags],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    smaller = "bfloat16; " if adapted else "bfloat16 or int8; "
    assert f"--dtype={smaller}" in said
