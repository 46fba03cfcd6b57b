"""What sample.py makes of its flags, and proposes where memory is too little."""

import pathlib
import subprocess
import sys

import pytest
from commands import environment

from sora_jax.weights.lora_folder import save_lora

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
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


def test_a_loop_of_no_duration_is_refused(tmp_path):
    flags = ["--prompt=a", "--loop", "--seconds=0", f"--output={tmp_path / 'loop.mp4'}"]
    made = subprocess.run(
        [sys.executable, REPOSITORY / "sample.py", *flags],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert made.returncode == 1 and "0.0 seconds hold 0 latent frames" in made.stderr
    assert not list(tmp_path.iterdir())
