"""The command that scores models says what it cannot work with."""

import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--combinations=0"], "--combinations"),
        (["shapes", "--seeds=0"], "--seeds"),
        (["shapes", "--steps=0"], "--steps"),
        (
            [
                "reconstruction",
                "--config=configs/shapes_vae.py",
                "--config.data.buckets=(1,64,64)",
            ],
            "config.data.buckets has 1, which is no bucket",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_scored_is_refused_in_one_line(arguments, message):
    command = [sys.executable, "-m", "sora_jax.evaluation", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr
