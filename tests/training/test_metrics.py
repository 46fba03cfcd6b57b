"""What a run reports of itself."""

import math

import pytest

from sora_jax.training.metrics import Reporter


def test_a_step_that_compiles_counts_for_no_rate(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(Reporter, "write", lambda self, step, groups: written.update(groups))
    reporter = Reporter(tmp_path, steps=3, every=3, peak=1.0, start=0)
    reporter.step(1, {"loss": 9.0}, clips=100, flops=500.0, timed=False)
    reporter.step(2, {"loss": 3.0}, clips=2, flops=8.0, timed=True)
    reporter.step(3, {"loss": 3.0}, clips=6, flops=8.0, timed=True)
    reporter.close()
    rate = written["rate"]
    assert rate["clips_per_second"] == pytest.approx(4 * rate["steps_per_second"])
    assert rate["gflop_per_second"] == pytest.approx(8e-9 * rate["steps_per_second"])
    assert written["train"]["loss"] == 5.0


def test_means_are_over_the_steps_that_have_a_value(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(Reporter, "write", lambda self, step, groups: written.update(groups))
    reporter = Reporter(tmp_path, steps=3, every=3, peak=1.0, start=0)
    for step, sometimes in enumerate((math.nan, 2.0, 6.0), 1):
        metrics = {"sometimes": sometimes, "never": math.nan}
        reporter.step(step, metrics, clips=1, flops=1.0, timed=True)
    reporter.close()
    assert written["train"]["sometimes"] == 4.0
    assert math.isnan(written["train"]["never"])
