"""The loop: resuming is bit-exact, bad steps are skipped, a signal saves, divergence stops."""

import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from sora_jax.buckets import Bucket
from sora_jax.data.loader import make_loader
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.sharding import make_mesh
from sora_jax.training import loop
from sora_jax.training.loop import MAX_BAD_STEPS, DivergedError, LoopConfig, train
from sora_jax.training.optimizer import make_optimizer

BUCKETS = [Bucket(1, 16, 16), Bucket(5, 16, 16)]


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """Without the seconds that measuring the machine takes at each start."""
    monkeypatch.setattr(loop, "measure_peak", lambda: 1e9)


class MeanColour:
    """A small real task: predict a clip's mean colour from its first pixel, with noise."""

    frozen = start = None

    def __init__(self, poison=frozenset(), on_step=None):
        self.poison = jnp.array(sorted(poison) or [-1])
        self.on_step = on_step
        self.saved = []

    def init(self, key):
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None))
        return {"layer": {"kernel": kernel(key, (8, 3))}}

    def loss(self, params, frozen, batch, key):
        frames = batch["frames"].astype(jnp.float32) / 255
        x = jnp.tile(frames[:, 0, 0, 0], (1, 3))[:, :8]
        x = x + 0.1 * jax.random.normal(key, x.shape)
        error = x @ params["layer"]["kernel"] - jnp.mean(frames, axis=(1, 2, 3))
        if self.on_step is not None:
            jax.debug.callback(self.on_step)
        # The pixel is the batch's own, so the same batches are poisoned in every run.
        bad = jnp.any(jnp.sum(batch["frames"].astype(jnp.int32)) % 7 == self.poison)
        # A factor, so that the gradients are no numbers either.
        return jnp.mean(error**2) * jnp.where(bad, jnp.nan, 1.0), {}

    def evaluate(self, params, frozen, batch, key):
        return {"loss": self.loss(params, frozen, batch, key)[0]}

    def flops(self, batch):
        return 1.0

    def save(self, folder, params, scores):
        self.saved.append(scores)


def run(workdir, steps, task=None, checkpoint_every=4, evaluate_every=0, mesh=None):
    """Trains to `steps` of a run whose schedule is 12 long; scores it if `evaluate_every`."""
    task = task or MeanColour()
    loader = make_loader(Shapes(64, BUCKETS), BUCKETS, batch_size=lambda bucket: 8, seed=3)
    tx = make_optimizer(
        learning_rate=0.1,
        muon_learning_rate=0.0,
        steps=12,
        warmup_steps=2,
        decay_share=0.3,
        weight_decay=0.01,
        b2=0.9,
        clip=1.0,
    )
    config = LoopConfig(
        steps=steps,
        seed=5,
        ema_decay=0.9,
        log_every=2,
        evaluate_every=evaluate_every or 100,
        checkpoint_every=checkpoint_every,
        save_every=100,
    )
    frames = np.zeros((8, 1, 16, 16, 3), np.uint8)
    held_out = [{"frames": frames}] if evaluate_every else []
    try:
        state = train(task, tx, loader, held_out, config, workdir, mesh or make_mesh())
    finally:
        loader.close()
    return jax.device_get(state)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 5, checkpoint_every=5)
    resumed = run(tmp_path / "parts", 12)
    assert int(resumed.step) == 12
    assert equal(whole, resumed)


def test_a_run_goes_on_with_fewer_devices_and_another_mesh(tmp_path):
    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 4)
    run(tmp_path / "parts", 8, mesh=make_mesh({"data": 2, "context": 2}, jax.devices()[:4]))
    state = run(tmp_path / "parts", 12, mesh=make_mesh(devices=jax.devices()[:1]))
    assert int(state.step) == 12
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(whole)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_next_batch_is_on_its_way_before_the_loop_waits_for_a_step(tmp_path, monkeypatch):
    order = []

    def note(name, function):
        return lambda *arguments: order.append(name) or function(*arguments)

    monkeypatch.setattr(loop, "place_batch", note("place", loop.place_batch))
    monkeypatch.setattr(jax, "device_get", note("wait", jax.device_get))
    run(tmp_path, 6, checkpoint_every=100)
    assert order[:10] == ["place", *["place", "wait"] * 4, "place"]


def test_the_old_state_gives_its_memory_to_the_new_one(tmp_path, monkeypatch):
    states = []

    def make_state(*arguments):
        states.append(loop_make_state(*arguments))
        return states[-1]

    loop_make_state = loop.make_state
    monkeypatch.setattr(loop, "make_state", make_state)
    run(tmp_path, 2)
    ((first, _),) = states
    assert all(x.is_deleted() for x in jax.tree.leaves((first.params, first.opt_state)))


def test_a_different_order_of_data_would_be_noticed(tmp_path):
    # The test above can only see the data if the result depends on which batches came.
    first = run(tmp_path / "a", 12)
    poisoned = run(tmp_path / "b", 12, MeanColour(poison={1}))
    assert 0 < int(poisoned.skipped) < 12
    assert not equal(first.params, poisoned.params)


def test_a_step_without_finite_loss_changes_only_the_counters(tmp_path):
    state = run(tmp_path, 3, MeanColour(poison=range(7)))
    fresh = run(tmp_path / "fresh", 0)
    for name in ("params", "ema", "opt_state"):
        assert equal(getattr(state, name), getattr(fresh, name)), name
    assert int(state.step) == 3 and int(state.skipped) == 3 and int(state.bad_steps) == 3


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(DivergedError, match="learning rate"):
        run(tmp_path, 3 * MAX_BAD_STEPS, MeanColour(poison=range(7)))


def test_sigterm_saves_and_ends(tmp_path):
    count = 0

    def after_some_steps():
        nonlocal count
        count += 1
        if count == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    state = run(tmp_path, 10_000, MeanColour(on_step=after_some_steps))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    stopped = int(state.step)
    assert stopped < 10_000 and (tmp_path / "checkpoints" / str(stopped)).is_dir()
    resumed = run(tmp_path, stopped)
    assert int(resumed.step) == stopped and equal(state.params, resumed.params)


def test_sigterm_while_scoring_loses_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or {})
    state = run(tmp_path, 12, checkpoint_every=100, evaluate_every=3)
    assert 3 <= int(state.step) < 12
    assert (tmp_path / "checkpoints" / str(state.step)).is_dir()


def test_a_run_that_ended_before_its_model_was_written_writes_it(tmp_path):
    class Full(MeanColour):
        def save(self, folder, params, scores):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run(tmp_path, 4, Full(), evaluate_every=4)
    task = MeanColour()
    state = run(tmp_path, 4, task, evaluate_every=4)
    assert int(state.step) == 4
    (scores,) = task.saved
    assert np.isfinite(scores["loss"])


@pytest.fixture
def broken_wait():
    """Has the next wait for checkpoints fail, once it is called."""
    wait = ocp.CheckpointManager.wait_until_finished

    def fail(manager):
        patch.undo()
        wait(manager)
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)


def test_a_checkpoint_that_fails_hides_no_earlier_error(tmp_path, caplog, broken_wait):
    class Full(MeanColour):
        def save(self, folder, params, scores):
            broken_wait()
            raise RuntimeError("the first error")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="the first error"):
        run(tmp_path, 4, Full(), evaluate_every=4)
    assert "a checkpoint was not written either: disk full" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_that_fails_is_an_error_and_all_is_closed(tmp_path, broken_wait):
    class Last(MeanColour):
        def save(self, folder, params, scores):
            broken_wait()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, 4, Last(), evaluate_every=4)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_past_the_last_step_is_said(tmp_path, caplog):
    run(tmp_path, 4)
    assert int(run(tmp_path, 2).step) == 4
    assert "the checkpoint is of step 4, past config.loop.steps=2: nothing is left" in caplog.text
    caplog.clear()
    run(tmp_path, 4)
    assert "nothing is left" not in caplog.text


def test_a_checkpoint_of_another_configuration_is_named(tmp_path):
    run(tmp_path, 4)

    class Wider(MeanColour):
        def init(self, key):
            kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", None))
            return {"layer": {"kernel": kernel(key, (16, 3))}}

    with pytest.raises(ValueError, match=r"another configuration.*layer/kernel.*\(8, 3\)"):
        run(tmp_path, 8, Wider())


def test_progress_is_logged_with_rates(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="sora_jax"):
        run(tmp_path, 6)
    lines = [record.getMessage() for record in caplog.records]
    assert any("step 6/6" in line and "clips_per_second" in line for line in lines)
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
