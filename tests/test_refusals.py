"""What the commands cannot do ends them with one line that has the remedy, and nothing written."""

import json
import re
import subprocess
import sys

import pytest

from tests.commands import REPOSITORY, environment

VAE = "--config=tests/tiny_vae.py"


def error_of(status, said, folder):
    """The one line of a command that must fail, with nothing left in the folder."""
    assert status == 1, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert not [file for file in folder.rglob("*") if file.is_file()]
    return last


# Runs commands of ours, each in a process of its own, which has the imports already, and knows the
# shapes of the tiny networks.
SERVER = """
import json, os, runpy, sys
import sora_jax.prompting, sora_jax.training.setup
from sora_jax.models.sizes import abstract_params
from tests import tiny_model
abstract_params(tiny_model.init_vae, tiny_model.VAE_CONFIG)
abstract_params(tiny_model.init_dit, tiny_model.DIT_CONFIG)
for line in sys.stdin:
    arguments, log = json.loads(line)
    process = os.fork()
    if not process:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = arguments
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1])
        else:
            runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(arguments of python) -> exit status and standard error."""
    log = tmp_path_factory.mktemp("said") / "stderr"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=REPOSITORY, env=environment(), text=True, **pipes
    )

    def run(*arguments):
        log.unlink(missing_ok=True)
        process.stdin.write(json.dumps([arguments, str(log)]) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline()), log.read_text()

    with process:
        yield run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([VAE, "--config.data.folder=nowhere"], "no dataset at nowhere"),
        ([VAE, "--config.loop.step=3"], 'not have: .*Did you mean "steps"'),
        ([VAE, "--config.data.buckets=((1,20,16),)"], "height 20 .*nearest are 16 and 24"),
        ([VAE, "extra"], "'extra' belongs to no flag"),
        ([VAE, "--num_processes=2"], "--num_processes=2 needs --coordinator_address and"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=configs/shapes_dit.py:foo"], "no stage 'foo'; use one of"),
        (["--config=configs/clips_vae.py:10"], "1 . 4k such as 9, not '10'"),
        ([], "--config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_refuses(run, tmp_path, arguments, message):
    said = error_of(*run("train.py", *arguments, f"--workdir={tmp_path}/run"), tmp_path)
    assert re.search(message, said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=OUT/a.mp4"], "--prompt"),
        (["--prompt=a", "--output=OUT/a.mp4", "--checkpoint=OUT"], "holds no model.json"),
        (["--prompt=a", "--output=OUT/a.mp4", "--size=36x16"], "nearest are 32 and 40"),
        (["--prompt=a", "--output=OUT/a.avi"], "unknown suffix; use one of .mp4"),
        (["--prompt=a", "--output=OUT/a.png", "--frames=5"], "holds one image"),
        (["--prompt=a", "--output=OUT/a.mp4", "--image=OUT/no.png"], "no.png"),
        (["--prompt=a", "--extend=1"], "--extend takes 1 --video, not 0"),
        (["--prompt=a", "--connect=1", "--video=a.mp4"], "--connect takes 2 --video, not 1"),
        (["--prompt=a", "--video=a.mp4"], "--video needs --extend"),
        (
            ["--prompt=a", "--video=a.mp4", "--edit=1", "--loop=1"],
            "--loop and --edit are two tasks",
        ),
        (["--prompt=a", "--video=a.mp4", "--edit=1", "--frames=5"], "no use with --edit"),
        (["--prompt=a", "--video=a.mp4", "--edit=1", "--output=OUT/a.png"], "makes a video"),
        (["--prompt=a", "--video=a.mp4", "--loop=soon"], "--loop=soon is no number of seconds"),
        (["--prompt=a", "--video=a.mp4", "--loop"], "--loop.* each with its number"),
        (["--prompt=a", "--loop", "--frames=16"], "takes its duration from --seconds"),
        (["--prompt=a", "--image="], "error"),
        (["--prompt=a", "--hint=0.5"], "--hint is for"),
        (["--prompt=a", "--draft=big"], "--draft=big is not WIDTHxHEIGHT"),
        (["--prompt=a", "--draft=36x16"], "nearest are 32 and 40"),
        (["--prompt=a", "--draft=32x32", "--size=64x32"], "of different shapes"),
        (["--prompt=a", "--draft=16x16", "--size=32x32", "--frames=81"], "too many to enlarge"),
        (["--prompt=a", "--given_guidance=2"], "by frames that are kept, and none is"),
        (["--prompt=a", "--draft=32x16", "--loop"], "--draft is of a prompt alone"),
        (["--prompt=a", "--guidance_interval=low,high"], "is not LOW,HIGH such as"),
        (["--prompt=a", "--guidance_interval=0.5"], "must be two shares"),
        (["--prompt=a", "--guidance=-1"], "guidance -1.0"),
        (["--prompt=a", "--guidance_low=3"], "for models of two transformers, and this has one"),
        (["--prompt=a", "--fps=nan"], "--fps=nan"),
        (["--prompt=a", "--loop", "--output=OUT/a.png"], "makes a video"),
        (["--prompt=a", "--keyframe=later:a.png"], "is not SECONDS:FILE"),
        (["--prompt=a", "--keyframe=1:a.png", "--keyframe=1.0:b.png"], "have the same time"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_sample_refuses(run, folder, tmp_path, arguments, message):
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    said = error_of(*run("sample.py", f"--checkpoint={folder}", *arguments), tmp_path)
    assert re.search(message, said)


TRAIN_BEYOND_MEMORY = """
import jax
import train
train.run = lambda *_: jax.numpy.zeros((10**7, 10**7)).block_until_ready()
train.command.run(train.main)
"""


SAMPLE_BEYOND_MEMORY = """
import jax
import sample
sample.run = lambda: jax.numpy.zeros((10**7, 10**7)).block_until_ready()
sample.command.run(sample.main)
"""
LESS = "ask for a smaller --size or fewer --frames"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample.py", "--prompt=a", "--output=OUT/a.mp4", "--size=400000x400000"], LESS),
        (
            ["-c", SAMPLE_BEYOND_MEMORY, "--prompt=a"],
            f"{LESS}; hold parameters in --dtype=bfloat16 or int8; hold one network at a time, "
            "--in_turn",
        ),
        (["-c", SAMPLE_BEYOND_MEMORY, "--prompt=a", "--dtype=int8", "--in_turn"], LESS),
        (
            ["-c", SAMPLE_BEYOND_MEMORY, "--prompt=a", "--lora=a", "--in_turn"],
            f"{LESS}; hold parameters in --dtype=bfloat16",
        ),
        (
            ["-c", TRAIN_BEYOND_MEMORY, VAE, "--workdir=OUT"],
            "lower config.data.token_budget=16, or the sizes of the network",
        ),
    ],
    ids=["size", "sample", "least", "adapters", "train"],
)
def test_too_little_memory_is_said_with_the_remedy(run, tmp_path, arguments, message):
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    assert error_of(*run(*arguments), tmp_path) == f"error: out of memory: {message}"
