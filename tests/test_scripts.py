"""The commands, as a user gives them: the whole line once, kills and signals, wrong input."""

import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from sora_jax import video_io
from sora_jax.buckets import Bucket
from sora_jax.data.worlds.shapes import Shapes
from tests import commands
from tests.tiny_model import write_model

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
VAE, DIT = "--config=tests/tiny_vae.py", "--config=tests/tiny_dit.py"
STEPS = 40
CLIPS = ("alder", "beech", "cedar", "elm", "fir", "larch", "maple", "oak")
IMAGES = ("ash", "birch", "hazel", "holly", "pine", "poplar", "rowan", "willow")


def start(*arguments, **environment):
    """A command of ours that begins."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**commands.environment(), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Exit status and standard error of a command."""
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def succeed(*arguments, **environment):
    """The standard error of a command that must work."""
    status, said = finish(start(*arguments, **environment))
    assert status == 0, said
    return said


def wait_for(process, happened):
    """Reads what a process says until happened(line)."""
    said = []
    for line in process.stderr:
        said.append(line)
        if happened(line):
            return
    raise AssertionError(f"ended too early:\n{''.join(said)}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("line")


@pytest.fixture(scope="module")
def dataset(root):
    """A dataset of captioned clips and images of the rendered world, through the command."""
    clips = root / "clips"
    clips.mkdir()
    shapes = [Bucket(1, 32, 32)] * len(IMAGES) + [Bucket(10, 32, 64)] * len(CLIPS)
    world = Shapes(len(shapes), shapes)
    for index, (name, bucket) in enumerate(zip((*IMAGES, *CLIPS), shapes)):
        clip = world.read(index, bucket, np.random.default_rng(0))
        file = clips / f"{name}.{'png' if bucket.frames == 1 else 'mp4'}"
        video_io.write(file, clip["frames"], fps=8)
        file.with_suffix(".txt").write_text(clip["captions"]["short"])
    output = root / "dataset"
    folder = "sora_jax.data.folder"
    succeed("-m", folder, f"--clips={clips}", f"--output={output}", "--held_out=0.4")
    return output


@pytest.fixture(scope="module")
def vae(root, dataset):
    """The work folder of a trained VAE, and what its training said."""
    workdir = root / "vae"
    said = succeed("train.py", VAE, f"--workdir={workdir}", f"--config.data.folder={dataset}")
    return workdir, said


@pytest.fixture(scope="module")
def dit_arguments(root, dataset, vae):
    """What a run of the transformer on precomputed latents is started with."""
    arguments = [DIT, f"--config.data.folder={dataset}", f"--config.vae={vae[0] / 'model'}"]
    latents = root / "latents"
    succeed("-m", "sora_jax.data.precompute", *arguments, f"--output={latents}", "--passes=2")
    return ["train.py", *arguments, f"--config.data.latents={latents}"]


@pytest.fixture(scope="module")
def dit(root, dit_arguments):
    """The work folder of a trained transformer, and what its training said."""
    workdir = root / "dit"
    said = succeed(*dit_arguments, f"--workdir={workdir}", JAX_LOG_COMPILES="1")
    return workdir, said


def test_training_writes_models_pictures_and_samples(vae, dit):
    names = {file.name for file in (vae[0] / "model").iterdir()}
    assert names >= {"model.json", "vae.safetensors", "reconstruction_0.mp4"}
    names = {file.name for file in (dit[0] / "model").iterdir()}
    assert names >= {"model.json", "vae.safetensors", "dit.safetensors", "text.safetensors"}
    assert video_io.probe(dit[0] / "model" / "sample_0.mp4").frames == 5
    assert f"step {STEPS}/{STEPS} " in dit[1] and f"step {STEPS} held out: loss " in dit[1]


def test_each_bucket_compiles_once(dit):
    assert len(re.findall(r"compiled for", dit[1])) == 2
    assert len(re.findall(r"Finished XLA compilation of jit\(train_step\)", dit[1])) == 2


def test_what_was_trained_makes_a_video(dit, tmp_path):
    output = tmp_path / "video.mp4"
    command = ["sample.py", f"--checkpoint={dit[0]}", "--prompt=a red circle moves right"]
    succeed(*command, f"--output={output}", "--size=48x32", "--frames=9", "--fps=12")
    info = video_io.probe(output)
    assert (info.frames, info.width, info.height, info.fps) == (9, 48, 32, 12)
    assert list(tmp_path.iterdir()) == [output]


def test_an_interrupted_run_equals_the_uninterrupted_one_bit_for_bit(root, dit, dit_arguments):
    workdir = root / "interrupted"
    shutil.copytree(dit[0] / "compiled", workdir / "compiled")
    arguments = [*dit_arguments, f"--workdir={workdir}"]

    process = start(*arguments)
    # Each checkpoint waits for the one before it, so that there are many steps left to do.
    wait_for(process, lambda line: (workdir / "checkpoints" / "8").is_dir())
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL

    process = start(*arguments)
    wait_for(process, lambda line: "resumed from step " in line)
    wait_for(process, lambda line: "compiled for" in line)
    process.terminate()
    status, said = finish(process)
    assert status == 0
    saved = int(re.search(r"asked to stop: saved step (\d+)", said)[1])
    assert 8 < saved < STEPS and (workdir / "checkpoints" / str(saved)).is_dir()
    assert not (workdir / "model").exists()

    said = succeed(*arguments)
    assert f"resumed from step {saved}" in said
    for name in ("dit.safetensors", "text.safetensors", "model.json"):
        one, two = (folder / "model" / name for folder in (dit[0], workdir))
        assert one.read_bytes() == two.read_bytes(), name


def refused(arguments, folder):
    """The error of a command that must fail in one line, with nothing left in the folder."""
    status, said = finish(start(*arguments))
    assert status == 1, said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert not [file for file in folder.rglob("*") if file.is_file()]
    return last


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
def test_train_refuses(tmp_path, arguments, message):
    said = refused(["train.py", *arguments, f"--workdir={tmp_path}/run"], tmp_path)
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
def test_sample_refuses(dit, tmp_path, arguments, message):
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    said = refused(["sample.py", f"--checkpoint={dit[0]}", *arguments], tmp_path)
    assert re.search(message, said)


def test_sample_goes_on_from_a_file(tmp_path):
    """An image of another size is animated, the video then extended and edited."""
    model = write_model(tmp_path / "model", frames=17)
    image, video = tmp_path / "a.png", tmp_path / "a.mp4"
    video_io.write(image, np.random.default_rng(0).integers(0, 256, (1, 40, 80, 3), np.uint8))
    sample = ["sample.py", f"--checkpoint={model}", "--prompt=a red circle"]
    succeed(*sample, f"--image={image}", f"--output={video}", "--frames=9")
    info = video_io.probe(video)
    assert (info.frames, info.width, info.height) == (9, 32, 16)
    longer = tmp_path / "longer.mp4"
    succeed(*sample, f"--video={video}", "--extend=1", "--given_guidance=2", f"--output={longer}")
    assert video_io.probe(longer).frames == 9 + 8
    looped = tmp_path / "looped.mp4"
    succeed(*sample, "--loop", "--seconds=2", f"--output={looped}")
    assert video_io.probe(looped).frames == 16
    long = tmp_path / "long.mp4"
    succeed(*sample, "--seconds=6", f"--output={long}")
    assert video_io.probe(long).frames == 49
    edited = tmp_path / "edited.mp4"
    succeed(*sample, f"--video={longer}", "--edit=0.5", f"--output={edited}", "--size=16x16")
    info = video_io.probe(edited)
    assert (info.frames, info.width, info.height) == (17, 16, 16)
    large = tmp_path / "large.png"
    guided = ["--guidance_interval=0.2,0.9", "--guidance_rescale=0.5"]
    succeed(*sample, *guided, f"--output={large}", "--draft=32x16", "--size=80x40")
    info = video_io.probe(large)
    assert (info.width, info.height) == (80, 40)


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
def test_too_little_memory_is_said_with_the_remedy(tmp_path, arguments, message):
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in arguments]
    assert refused(arguments, tmp_path) == f"error: out of memory: {message}"
