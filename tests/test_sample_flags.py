"""What sample.py makes of its flags, and proposes where memory is too little."""

import pathlib
import subprocess
import sys

from commands import environment

from sora_jax.weights.lora_folder import save_lora

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# Prints what is proposed for each checkpoint that is given.
HINTS = """
import sys
from absl import flags
from sora_jax import sample_flags

for checkpoint in sys.argv[1:]:
    flags.FLAGS(["sample.py", "--prompt=a", f"--checkpoint={checkpoint}"])
    print(sample_flags.memory_hint())
"""


def test_int8_is_proposed_only_without_adapters(tmp_path):
    """Not for the run that trained adapters either: they are not added to int8."""
    save_lora(tmp_path / "run" / "model", {}, tmp_path, "", {})
    made = subprocess.run(
        [sys.executable, "-c", HINTS, tmp_path / "model", tmp_path / "run"],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    whole, adapted = made.stdout.splitlines()
    assert "--dtype=bfloat16 or int8; " in whole and "--dtype=bfloat16; " in adapted


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
