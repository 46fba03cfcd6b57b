"""Precomputed latents are what training would have encoded, of every clip that can be read."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tiny_folders import MEAN, STD, VAE, randomised, save_vae

from sora_jax import video_io
from sora_jax.buckets import Bucket
from sora_jax.data import folder
from sora_jax.data.clips import ClipDataset
from sora_jax.data.identity import check_vae
from sora_jax.data.latents import LatentDataset
from sora_jax.data.precompute import precompute
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.progress import Progress
from sora_jax.training.clips import make_source
from sora_jax.training.dit_task import DiTTask
from sora_jax.training.levels import NoiseConfig

BUCKETS = ((1, 16, 16), (5, 16, 24))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """Folder and parameters of a tiny random VAE."""
    path = tmp_path_factory.mktemp("vae")
    return path, save_vae(path)


def make_config(vae_path, **data) -> ConfigDict:
    settings = {
        "folder": "",
        "latents": "",
        "clips": 12,
        "fps": 8.0,
        "buckets": BUCKETS,
        "bucket_weights": (0.5, 0.5),
        **data,
    }
    return ConfigDict(
        {
            "seed": 3,
            "dtype": "float32",
            "vae": str(vae_path),
            "text_encoder": "",
            "data": settings,
        }
    )


@pytest.fixture(scope="module")
def precomputed(vae, tmp_path_factory):
    """Config of the rendered world, and its latents."""
    config = make_config(vae[0])
    output = tmp_path_factory.mktemp("latents") / "latents"
    precompute(config, output)
    return config, output


@pytest.fixture(scope="module")
def task(vae):
    dit = DiTConfig(
        width=32,
        layers=1,
        heads=2,
        mlp_width=32,
        latent_channels=4,
        patch=(1, 1, 1),
        text_width=16,
        time_features=16,
    )
    text = TextConfig(vocabulary=8, width=16, layers=1, heads=2, head_width=8, mlp_width=16)
    frozen = {"vae": vae[1], "latent_mean": MEAN, "latent_std": STD}
    noise, patterns = NoiseConfig(), {"none": 0.5, "first_frame": 0.5}
    return DiTTask(dit, text, VAE, jnp.float32, noise, patterns, frozen, "none", 0, None, {})


def pairs(config, output, split):
    """Batches of frames and of latents of the same clips, one of each bucket."""
    buckets = [Bucket(*shape) for shape in BUCKETS]
    source = make_source(config.data, buckets, held_out=split == "validation")
    dataset = LatentDataset(output, split)
    clips = [int(r["clip"]) for r in tfds.builder_from_directory(output).as_data_source(split)]
    assert sorted(clips) == list(range(len(source)))
    for bucket in buckets:
        shape = (bucket.frames, bucket.height, bucket.width)
        members = [i for i in range(len(dataset)) if tuple(dataset.shapes[i]) == shape][:6]
        rng = np.random.default_rng(0)
        read = [source.read(clips[i], bucket, rng)["frames"] for i in members]
        latents = [dataset.read(i, bucket, rng)["latents"] for i in members]
        assert [dataset.captions(i)["short"] for i in members] == [
            source.captions(clips[i])["short"] for i in members
        ]
        yield np.stack(read), np.stack(latents)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_latents_are_those_of_training(precomputed, task, split):
    for frames, latents in pairs(*precomputed, split):
        online = np.asarray(jax.jit(task._latents)(task.frozen, {"frames": frames}))
        assert np.std(online) > 0.1
        # Half precision has 11 bits: it rounds by at most 2 ** -11 of a number.
        np.testing.assert_allclose(latents, online, rtol=6e-4, atol=2e-5)


def test_the_loss_is_that_of_training(precomputed, task):
    params = randomised(DiTTask.init, task)
    loss = jax.jit(task.loss)
    _, (frames, latents) = pairs(*precomputed, "train")
    tokens = np.ones((len(frames), 3), np.int32)
    online, stored = (
        float(loss(params, task.frozen, {**batch, "tokens": tokens}, jax.random.key(7))[0])
        for batch in ({"frames": frames}, {"latents": latents})
    )
    assert online > 0.01
    assert stored == pytest.approx(online, rel=1e-3)


def test_the_metadata_name_vae_and_rate(precomputed, vae):
    _, output = precomputed
    check_vae(output, vae[0])
    assert LatentDataset(output).fps == 8.0
    assert json.loads((output / "latents.json").read_text())["seed"] == 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A dataset folder of eight moving clips, a few of them held out."""
    root = tmp_path_factory.mktemp("clips")
    (root / "raw").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdefgh":
        noise = rng.integers(0, 256, (20, 32, 48, 3), np.uint8)
        (root / "raw" / f"{name}{name}.mp4").write_bytes(video_io.encode(noise, fps=8))
        (root / "raw" / f"{name}{name}.txt").write_text(f"clip {name}")
    folder.build(root / "raw", root / "dataset", held_out=0.3)
    return root / "dataset"


def test_passes_differ_and_unreadable_clips_are_left_out(vae, clips, tmp_path, monkeypatch, capsys):
    read = ClipDataset.read

    def damaged(self, index, bucket, rng):
        if self.split == "train" and index == 1:
            raise video_io.VideoError("damaged on purpose")
        return read(self, index, bucket, rng)

    monkeypatch.setattr(ClipDataset, "read", damaged)
    config = make_config(vae[0], folder=str(clips), buckets=((5, 16, 24),))
    reports = [precompute(config, tmp_path / name, passes=2) for name in ("one", "two")]
    source = ClipDataset(clips, fps=8)
    count = len(source)
    expected = {
        "clip": 1,
        "file_name": source.file_name(1),
        "reason": "VideoError: damaged on purpose",
    }
    assert reports[0]["unreadable"] == {"train": [expected] * 2, "validation": []}
    assert "clip 1 " in capsys.readouterr().err

    found = {}
    for record in tfds.builder_from_directory(tmp_path / "one").as_data_source("train"):
        clip = int(record["clip"])
        assert record["file_name"].decode() == source.file_name(clip)
        assert record["captions"]["detailed"].decode() == source.captions(clip)["detailed"]
        found[clip, int(record["draw"])] = record["latents"]
    assert set(found) == {(c, d) for c in range(count) for d in (0, 1) if c != 1}
    # Another crop and start time in each pass, and the same ones whenever it is run.
    differ = [np.abs(found[c, 0] - found[c, 1]).max() > 0.1 for c in range(count) if c != 1]
    assert sum(differ) >= count - 2
    assert len(LatentDataset(tmp_path / "one", "validation")) == len(
        ClipDataset(clips, "validation", fps=8)
    )
    one, two = (LatentDataset(tmp_path / name) for name in ("one", "two"))
    for index in range(len(one)):
        latents = [d.read(index, Bucket(5, 16, 24), None)["latents"] for d in (one, two)]
        np.testing.assert_array_equal(*latents)


@pytest.mark.parametrize(
    ("change", "passes", "message"),
    [
        (
            {"data.buckets": ((5, 64, 64), (5, 72, 72))},
            1,
            "buckets 5x72x72 and 5x64x64 are too alike",
        ),
        ({"data.buckets": (1, 64, 64)}, 1, "config.data.buckets has 1, which is no bucket"),
        ({"data.buckets": ((6, 16, 16),)}, 1, "6 frames cannot be compressed"),
        ({"data.latents": "there"}, 1, "are latents already"),
        ({}, 0, "--passes=0"),
        ({"seed": -1}, 1, "config.seed=-1 must not be negative"),
        ({"vae": "nowhere"}, 1, "vae.safetensors is missing"),
    ],
)
def test_what_cannot_work_stops_before_anything_is_encoded(vae, tmp_path, change, passes, message):
    config = make_config(vae[0])
    config.update_from_flattened_dict(change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        precompute(config, tmp_path / "output", passes=passes)
    assert list(tmp_path.iterdir()) == []


def test_a_log_tells_rate_and_time_left(capsys):
    progress = Progress("encoded", "clip")
    progress.total = 4
    with progress:
        progress.advance(1)
        progress.advance(3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("encoded 4 of 4 clips, ") and line.endswith("0 min 0 s left")


def test_the_command_says_errors_in_one_line(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'vae': 'x', 'data': {'latents': ''}})\n"
    )
    command = [sys.executable, "-m", "sora_jax.data.precompute", f"--config={config}"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}/output", "--config.vae=nowhere"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: nowhere/vae.safetensors is missing")
    assert "Traceback" not in done.stderr
