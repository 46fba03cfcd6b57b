"""Weights are told apart by few of their bytes."""

import builtins
import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.digests import file_sha256, weights_sha256

LARGE = 4 * 2**20  # numbers of the large tensor, 16 MiB


@pytest.fixture
def file(tmp_path):
    tensors = {"large": np.arange(LARGE, dtype=np.float32), "small": np.zeros(3, np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {**tensors, "small": np.float32([0, 0, 1])},
        lambda tensors: {**tensors, "large": np.append(tensors["large"][:-1], np.float32(0))},
        # A layer of forty, as adapters of one layer would change it.
        lambda tensors: {**tensors, "large": tensors["large"] + (np.arange(LARGE) // 104858 == 7)},
        lambda tensors: {"large": tensors["small"], "small": tensors["large"]},
        lambda tensors: {**tensors, "large": tensors["large"].reshape(2, -1)},
        lambda tensors: {**tensors, "more": np.zeros(0, np.float32)},
    ],
    ids=["small", "last", "layer", "names", "shape", "more"],
)
def test_other_weights_have_another_checksum(file, change):
    other = file.with_name("b.safetensors")
    tensors = {name: np.float32(x) for name, x in change(load_file(file)).items()}
    save_file(tensors, other)
    assert weights_sha256(other) != weights_sha256(file)


def test_a_copy_has_the_same_and_little_of_it_is_read(file, monkeypatch):
    copy = file.with_name("b.safetensors")
    copy.write_bytes(file.read_bytes())
    assert file_sha256(file) == file_sha256(copy) == hashlib.sha256(copy.read_bytes()).hexdigest()
    read = []
    opened = builtins.open

    def count(*arguments):
        stream = opened(*arguments)

        class Counting:
            seek = stream.seek

            def read(self, size):
                read.append(size)
                return stream.read(size)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                stream.close()

        return Counting()

    monkeypatch.setattr(builtins, "open", count)
    assert weights_sha256(file) == weights_sha256(copy)
    assert sum(read) < 2**21 < file.stat().st_size


def test_what_is_no_file_of_weights_is_named(tmp_path):
    for content in (b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"a.safetensors is truncated or damaged"):
            weights_sha256(tmp_path / "a.safetensors")
