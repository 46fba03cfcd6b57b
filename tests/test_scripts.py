"""The commands, as a user gives them: the whole line once, a kill and a signal."""

import re
import shutil
import signal

import numpy as np
import pytest

from sora_jax import video_io
from sora_jax.buckets import Bucket
from sora_jax.data.worlds.shapes import Shapes
from tests import commands

VAE, DIT = "--config=tests/tiny_vae.py", "--config=tests/tiny_dit.py"
STEPS = 40
CLIPS = ("alder", "beech", "cedar", "elm", "fir", "larch", "maple", "oak")
IMAGES = ("ash", "birch", "hazel", "holly", "pine", "poplar", "rowan", "willow")


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
    commands.succeed("-m", folder, f"--clips={clips}", f"--output={output}", "--held_out=0.4")
    return output


@pytest.fixture(scope="module")
def vae(root, dataset):
    """The work folder of a trained VAE, and what its training said."""
    workdir = root / "vae"
    said = commands.succeed(
        "train.py", VAE, f"--workdir={workdir}", f"--config.data.folder={dataset}"
    )
    return workdir, said


@pytest.fixture(scope="module")
def dit_arguments(root, dataset, vae):
    """What a run of the transformer on precomputed latents is started with."""
    arguments = [DIT, f"--config.data.folder={dataset}", f"--config.vae={vae[0] / 'model'}"]
    latents = root / "latents"
    commands.succeed(
        "-m", "sora_jax.data.precompute", *arguments, f"--output={latents}", "--passes=2"
    )
    return ["train.py", *arguments, f"--config.data.latents={latents}"]


@pytest.fixture(scope="module")
def dit(root, dit_arguments):
    """The work folder of a trained transformer, and what its training said."""
    workdir = root / "dit"
    said = commands.succeed(*dit_arguments, f"--workdir={workdir}", JAX_LOG_COMPILES="1")
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
    commands.succeed(*command, f"--output={output}", "--size=48x32", "--frames=9", "--fps=12")
    info = video_io.probe(output)
    assert (info.frames, info.width, info.height, info.fps) == (9, 48, 32, 12)
    assert list(tmp_path.iterdir()) == [output]


def test_an_interrupted_run_equals_the_uninterrupted_one_bit_for_bit(root, dit, dit_arguments):
    workdir = root / "interrupted"
    shutil.copytree(dit[0] / "compiled", workdir / "compiled")
    arguments = [*dit_arguments, f"--workdir={workdir}"]

    process = commands.start(*arguments)
    # Each checkpoint waits for the one before it, so that there are many steps left to do.
    commands.wait_for(process, lambda line: (workdir / "checkpoints" / "8").is_dir())
    process.kill()
    assert commands.finish(process)[0] == -signal.SIGKILL

    process = commands.start(*arguments)
    commands.wait_for(process, lambda line: "resumed from step " in line)
    commands.wait_for(process, lambda line: "compiled for" in line)
    process.terminate()
    status, said = commands.finish(process)
    assert status == 0
    saved = int(re.search(r"asked to stop: saved step (\d+)", said)[1])
    assert 8 < saved < STEPS and (workdir / "checkpoints" / str(saved)).is_dir()
    assert not (workdir / "model").exists()

    said = commands.succeed(*arguments)
    assert f"resumed from step {saved}" in said
    for name in ("dit.safetensors", "text.safetensors", "model.json"):
        one, two = (folder / "model" / name for folder in (dit[0], workdir))
        assert one.read_bytes() == two.read_bytes(), name
