"""The command as a user gives it: a plan without data or weights, and a run made ready."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from tests import commands
from tests.tiny_folders import save_vae

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TINY = "--config=tests/tiny_dit.py"
QUICK = "--config.optimizer.muon_learning_rate=0.0"  # Muon takes longest to compile
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: libtpu is not installed"
)


def run(*arguments):
    """Exit status, standard output and error of a command of ours on one device."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@needs_compiler
def test_a_plan_of_the_real_step(tmp_path):
    file = tmp_path / "plan.json"
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.context=2")
    plan = ("--topology=v6e:2x2", "--bucket=5x16x32", "--batch=4", f"--json={file}")
    status, said, log = run("-m", "sora_jax.pod", TINY, QUICK, *mesh, *plan)
    assert status == 0, log
    assert "compiling train of 4 clips" in log
    words = [line for line in log.splitlines() if "still compiling" not in line]
    assert len(words) <= 4, "the compiler's own words"
    report = json.loads(file.read_text())
    assert report["fits"] and "fits: " in said
    assert report["mesh"] == {"data": 1, "fsdp": 2, "context": 2, "tensor": 1}
    kinds = report["memory_bytes"]["kinds"]
    assert kinds["parameters"] == kinds["EMA"] <= kinds["optimizer"] / 2
    # Latents, float32, and tokens of two of the four clips.
    assert kinds["batch"] == 2 * (4 * 2 * 2 * 4 * 16 + 4 * 16)
    assert report["memory_bytes"]["saved_for_backward"] > 0
    assert 0 < report["memory_bytes"]["compiler_peak"] < 2**27
    assert report["seconds"]["step"] > 0
    assert report["seconds"]["collectives"] > 0
    assert 0 < report["mfu"] < 1
    assert {row["group"] for row in report["collectives"]} >= {2}
    assert report["unknown_loops"] == []


@needs_compiler
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--topology=v6e:2x2", "--batch=6"), "6 clips cannot be split"),
        (("--topology=v6e:2x2", "--config.mesh.data=3"), "does not fill the 4 devices"),
        (("--topology=v6e:3x3",), "the nearest is v6e:"),
        (("--topology=v6e:1x1", "--dtype=int8"), "--dtype=int8 is for --work=sample and"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, error):
    status, said, log = run("-m", "sora_jax.pod", TINY, *arguments)
    assert status == 1 and not said
    assert error in log.splitlines()[-1]
    assert "Traceback" not in log


def test_a_warm_run_finds_its_steps_compiled(tmp_path):
    save_vae(tmp_path / "vae")
    workdir = tmp_path / "run"
    data = ("--config.data.folder=", "--config.data.clips=64", "--config.tokenizer.length=64")
    data += (f"--config.vae={tmp_path / 'vae'}", "--config.data.buckets=((5, 16, 32),)")
    loop = (f"--workdir={workdir}", "--config.loop.steps=2", "--config.sampling.prompts=()")
    status, _, log = run("-m", "sora_jax.pod", "--warm", TINY, QUICK, *data, *loop)
    assert status == 0, log
    assert "compiled bucket 5x16x32" in log

    def steps():
        files = (workdir / "compiled").glob("jit_*-cache")
        return {f.name for f in files if f.name.startswith(("jit_train_step", "jit_evaluate"))}

    before = steps()
    assert len(before) == 2
    status, _, log = run("train.py", TINY, QUICK, *data, *loop)
    assert status == 0, log
    assert steps() == before
