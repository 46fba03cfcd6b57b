"""Real processes over jax.distributed: they train as one, end together, and go on as others."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS = 500  # some seconds: not over before a signal comes, even on a busy machine
SELDOM = "--config.loop.checkpoint_every=250"  # for runs that nothing ends


def start(program, count, devices):
    """Processes of a command, each with so many devices; one has no flags of several."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    flags += f" --xla_force_host_platform_device_count={devices}"
    several = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [sys.executable, *program, *([*several, f"--process_id={i}"] if count > 1 else [])],
            cwd=REPOSITORY,
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def train(workdir, count, devices, *flags):
    config = ["--config=tests/tiny_hosts.py", f"--config.loop.steps={STEPS}"]
    config += ["--config.loop.checkpoint_every=20", "--config.loop.evaluate_every=150"]
    program = ["tests/hosts_program.py", *config, f"--workdir={workdir}", *flags]
    return start(program, count, devices)


def finish(processes):
    """Exit statuses, and what each said, but for gloo's own lines."""
    said = [process.communicate(timeout=200)[1] for process in processes]
    said = ["".join(x for x in s.splitlines(True) if "Gloo] Rank" not in x) for s in said]
    return [process.returncode for process in processes], said


def losses(said):
    return {int(n): float(x) for n, x in re.findall(r"step (\d+)/\d+ .*? loss (\S+)", said)}


def checkpoints_in(workdir):
    return [x.name for x in (workdir / "checkpoints").glob("*") if x.name.isdigit()]


def wait_for_checkpoint(workdir, after):
    """Step of a checkpoint after that one, as soon as there is one."""
    for _ in range(6000):
        newest = max(map(int, checkpoints_in(workdir)), default=0)
        if newest > after:
            return newest
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint after step {after}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with four devices says, and the model that it writes."""
    workdir = tmp_path_factory.mktemp("alone")
    (status,), (said,) = finish(train(workdir, 1, 4, SELDOM))
    assert status == 0, said
    return losses(said), np.load(workdir / "model" / "model.npz")


def assert_close(found, alone):
    """The losses of some steps, of which the log has four digits, are those of one process."""
    assert found
    np.testing.assert_allclose(
        list(found.values()), [alone[0][step] for step in found], rtol=2e-3, atol=1e-6
    )


def test_two_hosts_train_what_one_does(tmp_path, alone):
    statuses, (first, second) = finish(train(tmp_path, 2, 2, SELDOM))
    assert statuses == [0, 0], first + second
    assert set(losses(first)) == set(range(1, STEPS + 1))
    assert_close(losses(first), alone)
    assert re.fullmatch(r".* waiting for the other hosts at .*\n", second), "it reports nothing"
    assert len(list((tmp_path / "events").iterdir())) == 1
    model = np.load(tmp_path / "model" / "model.npz")
    for name in ("kernel", "sum", "check"):  # "sum" is of all held-out clips
        np.testing.assert_allclose(model[name], alone[1][name], rtol=2e-3, atol=1e-4)


def test_a_run_survives_a_dead_host_and_a_signal_on_other_numbers_of_hosts(tmp_path, alone):
    processes = train(tmp_path, 2, 2)
    wait_for_checkpoint(tmp_path, after=20)
    processes[1].kill()
    killed = time.monotonic()
    (status, _), (said, _) = finish(processes)
    # The connection breaks at once, or jax hears no heartbeat first and aborts: it is a race.
    assert status in (1, -signal.SIGABRT) and time.monotonic() - killed < 60
    assert status != 1 or "error: the hosts lost each other" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert_close(losses(said), alone)

    *_, saved, newest = sorted(map(int, checkpoints_in(tmp_path)))
    (tmp_path / "checkpoints" / str(newest) / "state" / "manifest.ocdbt").write_bytes(b"")

    # Four hosts of one device, two of which hold the same rows.
    processes = train(tmp_path, 4, 1, "--config.mesh.fsdp=2", "--config.mesh.context=2")
    resumed_from = wait_for_checkpoint(tmp_path, after=newest)
    processes[2].send_signal(signal.SIGTERM)
    statuses, said = finish(processes)
    assert statuses == [0] * 4, said
    assert f"resumed from step {saved}" in said[0]
    assert all(f"the checkpoint of step {newest} cannot be read" in each for each in said)
    assert "host 3: the checkpoint of step" in said[3]
    stopped = int(re.search(r"asked to stop: saved step (\d+)", said[0])[1])
    assert resumed_from <= stopped < STEPS and (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert_close(losses(said[0]), alone)
    assert not (tmp_path / "model").exists()

    (status,), (said,) = finish(train(tmp_path, 1, 1, SELDOM))
    assert status == 0 and f"resumed from step {stopped}" in said
    assert "not those of the checkpoint" not in said, "the order of the data is another"
    assert set(losses(said)) == set(range(stopped + 1, STEPS + 1))
    assert_close(losses(said), alone)
    kernel = np.load(tmp_path / "model" / "model.npz")["kernel"]
    np.testing.assert_allclose(kernel, alone[1]["kernel"], rtol=2e-3, atol=1e-4)


PLACE = """
import sys
import jax, numpy as np
from sora_jax.sharding import make_mesh
from sora_jax.training.multihost import join
from sora_jax.training.placement import gather, place_batch, place_frozen, split_of
address, count, index = (flag.partition("=")[2] for flag in sys.argv[1:])
join(address, int(count), int(index), {})
batch = np.arange(8 * 3).reshape(8, 3)
for shape in MESHES:
    mesh = make_mesh(shape)
    split = split_of(mesh)
    mine = np.concatenate([np.split(batch, split.ways)[part] for part in split.parts])
    placed = place_batch({"x": mine}, mesh)["x"]
    assert placed.shape == batch.shape
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, batch[shard.index])
    whole = gather({"x": placed}, keep=index == "0")["x"]
    assert whole is None if index != "0" else np.array_equal(whole, batch)
    fixed = place_frozen({"x": batch}, mesh)["x"]
    assert fixed.is_fully_replicated and np.array_equal(fixed, batch)
    print(*mine[:, 0] // 3, file=sys.stderr)
"""


def test_each_host_reads_the_rows_that_its_devices_hold():
    halves, everything = ["0 1 2 3", "4 5 6 7"], ["0 1 2 3 4 5 6 7"] * 2
    wanted = [
        ({"fsdp": 4}, halves),
        ({"data": 2, "fsdp": 2}, halves),
        ({"data": 2, "context": 2}, halves),
        ({"context": 4}, everything),
        ({"fsdp": 2, "tensor": 2}, halves),
        ({"context": 2, "tensor": 2}, everything),
    ]
    program = PLACE.replace("MESHES", repr([shape for shape, _ in wanted]))
    statuses, said = finish(start(["-c", program], 2, 2))
    assert statuses == [0, 0], said
    assert [list(rows) for rows in zip(*map(str.splitlines, said))] == [rows for _, rows in wanted]
