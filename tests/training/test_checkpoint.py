"""Checkpoints: read back before an older one goes, passed over when damaged, the same elsewhere."""

import gc
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.sharding import make_mesh
from sora_jax.training import checkpoint
from sora_jax.training.checkpoint import Checkpoints
from sora_jax.training.checksums import device_checksums, host_checksum
from sora_jax.training.state import TrainState


class Position:
    """The data's side of a checkpoint."""

    def __init__(self, step=0):
        self.step = step

    def get_state(self):
        return {"step": self.step, "fingerprint": 1}

    def set_state(self, state):
        self.step = state["step"]


def make_state(step, mesh):
    """A state of some 30 kB that differs from step to step, and its shardings."""
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    alone = NamedSharding(mesh, PartitionSpec())
    kernel = jax.random.normal(jax.random.key(step), (64, 32))
    values = {
        "params": {"kernel": (kernel, rows), "half": (kernel.astype(jnp.bfloat16), alone)},
        "ema": {"kernel": (kernel * 2, rows), "half": (kernel.astype(jnp.bfloat16), alone)},
        "opt_state": ({"mu": (kernel * 3, rows)}, (jnp.int32(step), alone)),
        **{name: (jnp.int32(step), alone) for name in ("step", "bad_steps", "skipped")},
    }
    pair = {"is_leaf": lambda x: isinstance(x, tuple) and len(x) == 2 and hasattr(x[0], "dtype")}
    state = TrainState(**jax.tree.map(lambda x: jax.device_put(*x), values, **pair))
    return state, TrainState(**jax.tree.map(lambda x: x[1], values, **pair))


@pytest.fixture(autouse=True)
def said_in_time():
    """Of reads that orbax left behind asyncio has words to say: not in a later test."""
    yield
    gc.collect()


def write(folder, steps, keep=2, mesh=None):
    mesh = mesh or make_mesh()
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step, mesh)[0], Position(step))


def read(folder, mesh=None):
    """The state that is restored, and the position."""
    position = Position()
    with Checkpoints(folder, keep=2) as checkpoints:
        state = checkpoints.restore(*make_state(0, mesh or make_mesh()), position)
    return jax.device_get(state), position.step


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, lambda file: file.unlink()])
def test_a_damaged_checkpoint_is_never_restored_and_never_a_crash(tmp_path, caplog, damage):
    """Whichever file is hit: either all values come back, or those of the step before, loudly."""
    write(tmp_path / "whole", [4, 8])
    wanted = {step: jax.device_get(make_state(step, make_mesh())[0]) for step in (4, 8)}
    newest = tmp_path / "whole" / "8"
    names = [file.relative_to(newest) for file in newest.rglob("*") if file.is_file()]
    passed_over = 0
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / "8" / name)
        caplog.clear()
        state, step = read(folder)
        assert int(state.step) == step and equal(state, wanted[step]), name
        if step == 4:
            passed_over += 1
            assert "the checkpoint of step 8 cannot be read" in caplog.text
            assert (folder / "damaged-8").is_dir() and steps_in(folder) == [4]
            write(folder, [8])  # the run comes to that step again
            assert read(folder)[1] == 8
    assert passed_over >= 2


@pytest.mark.parametrize(
    "word", ["array_metadatas", "param_name", "write_shape", "chunk_shape", "ext_metadata", "step"]
)
def test_a_wrong_letter_in_how_arrays_are_cut_up_is_found(tmp_path, caplog, word):
    """It is JSON still, and what reads onto devices trusts it."""
    write(tmp_path, [4, 8])
    (file,) = (tmp_path / "8" / "state" / "array_metadatas").iterdir()
    file.write_text(file.read_text().replace(f'"{word}"', f'"{word[:-1]}x"', 1))
    assert read(tmp_path)[1] == 4
    assert "the checkpoint of step 8 cannot be read" in caplog.text


@pytest.mark.parametrize(("together", "reads"), [(2**28, 1), (8192, 6)])
def test_arrays_are_read_back_together_as_far_as_memory_allows(
    tmp_path, monkeypatch, together, reads
):
    """Three arrays have 8192 bytes, two have half as many, and four are numbers among them."""
    monkeypatch.setattr(checkpoint, "_TOGETHER", together)
    handler, asked = checkpoint.ocp.PyTreeCheckpointHandler, []
    restore = handler.restore

    def counted(self, directory, args):
        asked.append(sum(hasattr(x, "shape") for x in jax.tree.leaves(args.item)))
        return restore(self, directory, args=args)

    monkeypatch.setattr(handler, "restore", counted)
    write(tmp_path, [4])
    assert sum(asked) == 9 and len(asked) == reads


def test_only_damaged_checkpoints_are_an_error_that_moves_nothing(tmp_path):
    write(tmp_path, [4, 8])
    for step in ("4", "8"):
        truncate(tmp_path / step / "state" / "manifest.ocdbt")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*step 8: .*step 4: "):
        read(tmp_path)
    assert steps_in(tmp_path) == [4, 8]


def test_older_checkpoints_go_once_the_new_one_was_read_back(tmp_path, caplog, monkeypatch):
    write(tmp_path, [4, 8, 12], keep=1)
    assert steps_in(tmp_path) == [12] and not caplog.text
    monkeypatch.setattr(checkpoint, "host_checksum", lambda x: -1)
    write(tmp_path, [16, 20], keep=1)
    assert steps_in(tmp_path) == [12, 16, 20]
    assert "step 16 was written, but does not read back" in caplog.text
    monkeypatch.undo()
    write(tmp_path, [24], keep=1)
    assert steps_in(tmp_path) == [24]


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    write(tmp_path, [4])
    half = tmp_path / "8.orbax-checkpoint-tmp"
    half.mkdir()
    write(tmp_path, [8])
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["4", "8"]


def test_a_checkpoint_without_checksums_is_restored(tmp_path):
    """As those of a run that began before there were any."""
    write(tmp_path, [4])
    sums = tmp_path / "4" / "checksums"
    for file in sums.iterdir():
        file.unlink()
    sums.rmdir()
    assert read(tmp_path)[1] == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_a_checksum_is_the_same_on_devices_and_in_memory(dtype):
    x = jnp.arange(-300, 340).reshape(8, 80).astype(dtype)
    split = jax.device_put(x, NamedSharding(make_mesh(), PartitionSpec("fsdp")))
    assert device_checksums({"a": split}) == {"a": host_checksum(np.asarray(x))}
    other = np.array(x)
    other[3, 3] += 1
    assert host_checksum(other) != host_checksum(np.asarray(x))


def test_restoring_on_fewer_devices_changes_nothing(tmp_path, caplog):
    write(tmp_path, [4], mesh=make_mesh({"fsdp": 8}))
    for count in (4, 1):
        with caplog.at_level(logging.WARNING):
            state, _ = read(tmp_path, make_mesh(devices=jax.devices()[:count]))
        assert equal(state, jax.device_get(make_state(4, make_mesh())[0]))
    assert not caplog.text
