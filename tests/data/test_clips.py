"""Clips of a dataset are read at any bucket and rate: every start alike, the index or not."""

import collections
import pickle
import subprocess
import sys

import numpy as np
import pytest

from sora_jax.buckets import Bucket
from sora_jax.data import records
from sora_jax.data.clips import ClipDataset
from tests.grey_clips import HEIGHT, WIDTH, numbers, write_dataset


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The same with the image in `validation`."""
    return write_dataset(tmp_path_factory.mktemp("split"), held_out=0.5)


def starts(dataset, bucket, draws):
    """How often each run of frames is read."""
    rng = np.random.default_rng(0)
    read = (numbers(dataset.read(0, bucket, rng)["frames"]) for _ in range(draws))
    return collections.Counter(map(tuple, read))


def test_read_draws_every_start_alike_and_keeps_time(small):
    dataset = ClipDataset(small, fps=10)
    assert dataset.shapes.tolist() == [[20, HEIGHT, WIDTH], [1, HEIGHT, WIDTH]]
    assert dataset.shapes.dtype == np.int32
    runs = starts(dataset, Bucket(17, 16, 16), 200)
    assert set(runs) == {tuple(range(start, start + 17)) for start in range(4)}
    assert min(runs.values()) > 0.65 * max(runs.values())
    assert set(starts(dataset, Bucket(20, 16, 16), 5)) == {tuple(range(20))}
    assert set(starts(dataset, Bucket(1, 16, 16), 150)) == {(frame,) for frame in range(20)}


def test_read_at_another_rate(small):
    dataset = ClipDataset(small, fps=5)
    assert dataset.shapes[:, 0].tolist() == [10, 1]
    runs = starts(dataset, Bucket(9, 16, 16), 50)
    assert set(runs) == {tuple(range(start, start + 17, 2)) for start in range(4)}


def test_slow_clips_are_announced(small, caplog):
    dataset = ClipDataset(small, fps=20)
    assert "1 of 2 clips have fewer than 20 frames a second" in caplog.text
    assert dataset.shapes[0, 0] == 40
    frames = dataset.read(0, Bucket(40, HEIGHT, WIDTH), np.random.default_rng(0))["frames"]
    assert sorted(set(numbers(frames))) == list(range(20))


def test_read_depends_on_the_generator_alone(small):
    dataset = ClipDataset(small, fps=10)
    bucket = Bucket(5, 16, 16)
    reads = [dataset.read(0, bucket, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert reads[0]["captions"] == dataset.captions(0) == {"detailed": "it brightens"}
    assert (dataset.file_name(0), dataset.file_name(1)) == ("a.mp4", "b.png")
    np.testing.assert_array_equal(reads[0]["frames"], reads[1]["frames"])
    assert (reads[0]["frames"] != reads[2]["frames"]).any()


def test_read_draws_the_crop(small):
    dataset = ClipDataset(small, fps=10)
    reads = [dataset.read(1, Bucket(1, 16, 16), np.random.default_rng(seed)) for seed in range(20)]
    assert all(each["frames"].shape == (1, 16, 16, 3) for each in reads)
    assert all(each["captions"] == {} for each in reads)
    brightness = [each["frames"].mean() for each in reads]
    assert min(brightness) < 100 < 155 < max(brightness)


def test_a_clip_that_does_not_fill_the_bucket_is_refused(small):
    dataset = ClipDataset(small, fps=10)
    with pytest.raises(ValueError, match="clip 1 has 1 frames, too few for bucket 5x16x16"):
        dataset.read(1, Bucket(5, 16, 16), np.random.default_rng(0))


def test_pickles_after_reading(small):
    dataset = ClipDataset(small, fps=10)
    bucket = Bucket(5, 16, 16)
    frames = dataset.read(0, bucket, np.random.default_rng(0))["frames"]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read(0, bucket, np.random.default_rng(0))["frames"], frames)
    np.testing.assert_array_equal(copy.shapes, dataset.shapes)


@pytest.mark.parametrize("damage", ["missing", "short", "garbled", "foreign"])
def test_a_bad_index_is_announced_and_not_needed(split, tmp_path, caplog, damage):
    copy = tmp_path / "dataset"
    copy.mkdir()
    for path in split.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    index = copy / records.INDEX
    if damage == "missing":
        index.unlink()
    else:
        lines = index.read_text().splitlines(keepends=True)
        foreign = "".join(line.replace("duration", "length") for line in lines)
        damaged = {"short": "".join(lines[1:]), "garbled": "{", "foreign": foreign}
        index.write_text(damaged[damage])
    for name in ("train", "validation"):
        shapes = ClipDataset(split, name, fps=7).shapes
        assert "no usable index" not in caplog.text
        np.testing.assert_array_equal(ClipDataset(copy, name, fps=7).shapes, shapes)
        caplog.clear()
    ClipDataset(copy, fps=7)
    assert "no usable index" in caplog.text


def test_reading_imports_neither_jax_nor_tensorflow(small):
    script = """
import sys
import numpy as np
from sora_jax.buckets import Bucket
from sora_jax.data.clips import ClipDataset
ClipDataset(sys.argv[1], fps=10).read(0, Bucket(5, 16, 16), np.random.default_rng(0))
print(sorted({"jax", "tensorflow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, small], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_opening_what_is_not_there(tmp_path, small):
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        ClipDataset(tmp_path, fps=10)
    with pytest.raises(ValueError, match=r"no split 'validation', only train: .*larger --held_out"):
        ClipDataset(small, "validation", fps=10)
    with pytest.raises(ValueError, match="fps=0"):
        ClipDataset(small, fps=0)
