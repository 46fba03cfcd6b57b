"""Latents on disk: read back as written, whole or not at all, and only for the VAE they are of."""

import functools
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from sora_jax.buckets import Bucket
from sora_jax.data.identity import check_vae, vae_identity
from sora_jax.data.latent_records import Record, write_latents
from sora_jax.data.latents import LatentDataset
from sora_jax.data.loader import make_loader

BUCKETS = (Bucket(1, 16, 24), Bucket(5, 16, 16))
CAPTIONS = ({"short": "grün"}, {"short": "s", "detailed": "A longer one."}, {})


def record(number: int) -> Record:
    bucket = BUCKETS[number % 2]
    shape = (1 + bucket.frames // 4, bucket.height // 8, bucket.width // 8, 4)
    latents = np.random.default_rng(number).normal(size=shape).astype(np.float16)
    return Record(
        latents, bucket, CAPTIONS[number % 3], f"clip {number}.mp4", number, number % 7, {}
    )


def some(*numbers: int):
    return functools.partial(map, record, numbers)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    return make_vae_folder(tmp_path_factory.mktemp("vae"), b"parameters", [0.1, 0.2])


def make_vae_folder(folder, weights, mean):
    (folder / "vae.safetensors").write_bytes(weights)
    vae = {"latent_mean": mean, "latent_std": [1.0, 2.0]}
    (folder / "model.json").write_text(json.dumps({"parts": {"vae": vae}}))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory, vae_folder):
    """Train: records 0 to 5 in three files, one of which is empty. Validation: 6 and 7."""
    output = tmp_path_factory.mktemp("latents") / "deep" / "output"
    shards = {"train": [some(0, 1, 2), some(), some(3, 4, 5)], "validation": [some(6, 7)]}
    write_latents(output, shards, 4, {"vae": vae_identity(vae_folder), "fps": 12.5})
    assert [each.name for each in output.parent.iterdir()] == ["output"]
    return output


@pytest.mark.parametrize(("split", "numbers"), [("train", range(6)), ("validation", (6, 7))])
def test_records_come_back_as_they_were_written(written, split, numbers):
    dataset = LatentDataset(written, split)
    assert (len(dataset), dataset.fps) == (len(numbers), 12.5)
    for index, number in enumerate(numbers):
        expected = record(number)
        bucket = expected.bucket
        shape = [bucket.frames, bucket.height, bucket.width]
        assert dataset.shapes[index].tolist() == shape
        read = dataset.read(index, bucket, np.random.default_rng(0))
        assert read["latents"].dtype == np.float32
        np.testing.assert_array_equal(read["latents"], expected.latents)
        assert read["captions"] == dataset.captions(index) == expected.captions
    assert dataset.shapes.dtype == np.int32


def test_tfds_alone_reads_them(written):
    source = tfds.builder_from_directory(written).as_data_source("train")
    for number, found in enumerate(source):
        expected = record(number)
        assert found["latents"].dtype == np.float16
        np.testing.assert_array_equal(found["latents"], expected.latents)
        assert found["file_name"].decode() == expected.file_name
        assert (found["clip"], found["draw"]) == (expected.clip, expected.draw)


def test_reading_imports_neither_jax_nor_tensorflow(written):
    script = """
import sys
import numpy as np
from sora_jax.buckets import Bucket
from sora_jax.data.latents import LatentDataset
LatentDataset(sys.argv[1]).read(1, Bucket(5, 16, 16), np.random.default_rng(0))
print(sorted({"jax", "tensorflow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, written], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_pickles_after_reading(written):
    dataset = LatentDataset(written)
    latents = dataset.read(1, BUCKETS[1], None)["latents"]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read(1, BUCKETS[1], None)["latents"], latents)


def test_the_loader_gives_every_record(written):
    dataset = LatentDataset(written)
    loader = make_loader(
        dataset,
        BUCKETS,
        batch_size=lambda bucket: 3,
        tokenize=lambda text: np.array([len(text)]),
        caption_weights={"short": 1.0},
        epochs=1,
    )
    found = [(one, int(n)) for b in loader for one, n in zip(b["latents"], b["tokens"][:, 0])]
    loader.close()
    assert len(found) == 6
    for number in range(6):
        expected = record(number)
        length = len(expected.captions.get("short", ""))
        same = [
            n
            for one, n in found
            if one.shape == expected.latents.shape and np.array_equal(one, expected.latents)
        ]
        assert same == [length]


def test_latents_of_other_buckets_are_refused(written):
    dataset = LatentDataset(written)
    dataset.check_buckets([Bucket(9, 8, 8), *(Bucket(*map(int, s)) for s in dataset.shapes)])
    with pytest.raises(ValueError, match=r"hold clips of \d+x\d+x\d+, .*config.data.buckets lacks"):
        dataset.check_buckets([Bucket(*map(int, dataset.shapes[0]))])


def test_another_bucket_than_the_one_encoded_is_refused(written):
    with pytest.raises(ValueError, match="encoded at 1x16x24 and cannot be read at 1x16x16"):
        LatentDataset(written).read(0, Bucket(1, 16, 16), np.random.default_rng(0))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interrupted_writing_leaves_nothing(tmp_path, error):
    def broken():
        yield record(1)
        raise error("stopped here")

    with pytest.raises(error, match="stopped here"):
        write_latents(tmp_path / "output", {"train": [some(0), broken]}, 4, {})
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no clip of the split 'validation' could be read"):
        write_latents(tmp_path / "o", {"train": [some(0)], "validation": [some()]}, 4, {})
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="exists: remove it, or name another folder"):
        write_latents(tmp_path, {"train": [some(0)]}, 4, {})
    assert [each.name for each in tmp_path.iterdir()] == ["precious.txt"]


def test_another_vae_is_refused(written, vae_folder, tmp_path):
    check_vae(written, vae_folder)
    with pytest.raises(FileNotFoundError, match=r"vae.safetensors is missing"):
        check_vae(written, tmp_path)
    with pytest.raises(ValueError, match=r"were made with another VAE .*set config.vae"):
        check_vae(written, make_vae_folder(tmp_path, b"others", [0.1, 0.2]))
    with pytest.raises(ValueError, match="normalised with another latent_mean"):
        check_vae(written, make_vae_folder(tmp_path, b"parameters", [0.1, 0.3]))


def test_what_is_no_dataset_of_latents_is_named(written, vae_folder, tmp_path):
    for use in (LatentDataset, lambda path: check_vae(path, vae_folder)):
        with pytest.raises(FileNotFoundError, match=r"no precomputed latents at .*precompute"):
            use(tmp_path)
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        LatentDataset(written, "test")
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "shapes_train.npy", np.ones((5, 3), np.int32))
    with pytest.raises(ValueError, match="describes 5 records, and there are 6"):
        LatentDataset(tmp_path)
    (tmp_path / "shapes_train.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read .*make the latents again"):
        LatentDataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latents.json", "[]", "is not of the format"),
        ("latents.json", '{"format": "sora_jax latents 1", "fps": 8}', "lacks 'vae': make the lat"),
        ("dataset_info.json", "{", r"the dataset in .* cannot be read .*: make the latents again"),
        ("features.json", "{", r"the dataset in .* cannot be read .*: make the latents again"),
        ("latents-train.array_record-00000-of-00003", "{", r"record 0 cannot be read .*make the"),
    ],
)
def test_what_is_damaged_is_named_with_the_remedy(written, tmp_path, name, content, message):
    shutil.copytree(written, tmp_path / "latents")
    (tmp_path / "latents" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        LatentDataset(tmp_path / "latents").captions(0)
