"""A work folder in a bucket: what is written locally gets there, and wrong urls stop at once.

The bucket is in memory, behind the same interface that reads Google Cloud Storage.
"""

import importlib.util

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sora_jax.language.tokenizer import train
from sora_jax.training import metrics, setup
from sora_jax.training.metrics import Reporter
from sora_jax.training.placement import BatchSplit
from sora_jax.training.remote import local_folder
from sora_jax.training.resume import keep_multiple, keep_tokenizer, kept_multiple


class Bucket(MemoryFileSystem):
    protocol = "gcs"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
    """The work folder of a run in a bucket."""
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    find = importlib.util.find_spec
    there = find("fsspec")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: there if name == "gcsfs" else find(name)
    )
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return setup.workdir_path("gs://bucket/run")


def test_a_model_folder_gets_into_the_bucket_with_its_description_last(bucket, monkeypatch):
    with local_folder(bucket / "model") as folder:
        folder.mkdir()
        for name in ("vae.safetensors", "model.json", "sample_0.mp4"):
            (folder / name).write_text(name)
    names = [path.rpartition("/")[2] for path in Bucket.store]
    assert sorted(names) == ["model.json", "sample_0.mp4", "vae.safetensors"]
    assert names[-1] == "model.json"
    assert (bucket / "model" / "sample_0.mp4").read_text() == "sample_0.mp4"


def test_what_a_run_keeps_is_found_again_in_the_bucket(bucket):
    first = keep_tokenizer(bucket, lambda: train(["one red circle"] * 9, 300))
    assert kept_multiple(bucket, BatchSplit(4, (0,), 4)).multiple == 4
    keep_multiple(bucket, BatchSplit(4, (0,), 4))
    (bucket / "checkpoints" / "5").mkdir(parents=True)
    again = keep_tokenizer(bucket, lambda: train(["two green squares"] * 9, 300))
    assert (
        again.encode("one red circle", 16).tolist() == first.encode("one red circle", 16).tolist()
    )
    assert kept_multiple(bucket, BatchSplit(2, (0,), 2)) == BatchSplit(2, (0,), 4)


@pytest.mark.parametrize("seconds", [0, 100])
def test_events_get_into_the_bucket_now_and_then_and_at_the_end(bucket, monkeypatch, seconds):
    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", seconds)
    reporter = Reporter(bucket / "events", steps=1, every=1, peak=1.0, start=0)
    reporter.step(1, {"loss": 9.0}, clips=1, flops=1.0, timed=True)
    assert (bucket / "events").exists() == (seconds == 0)
    reporter.close()
    (file,) = (bucket / "events").iterdir()
    assert b"train/loss" in file.read_bytes()


@pytest.mark.parametrize("url", ["s3://bucket/run", "gs://", "gs:///"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match=r"neither a folder nor .* gs://BUCKET/FOLDER"):
        setup.workdir_path(url)


def test_a_bucket_that_nothing_can_read_is_refused():
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is here")
    with pytest.raises(ValueError, match="gs://bucket/run needs the package gcsfs"):
        setup.workdir_path("gs://bucket/run")
