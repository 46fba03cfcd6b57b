"""The benchmark against diffusers: processes take turns, and what is missing is said."""

import sys

import pytest

from benchmarks import against_diffusers
from benchmarks.turns import MATMUL, MEMORY, Worker, take_turns


def test_a_process_runs_what_it_is_asked_for_and_an_end_is_noticed():
    with Worker("benchmarks.own", {"row": "text", "small": True}) as worker:
        (seconds,) = take_turns([worker], ["work"], 3)
        assert seconds.keys() == {MATMUL, "work"}
        assert len(seconds["work"]) == 3 and min(seconds["work"]) > 0
        assert worker.ask(MEMORY) > 2**26
        with pytest.raises(RuntimeError, match=r"benchmarks\.own ended"):
            worker.ask("rest")
        with pytest.raises(RuntimeError, match=r"benchmarks\.own ended"):
            worker.ask("rest")  # of one that is not there any more


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["against_diffusers", *arguments])
    against_diffusers.main()


def test_what_is_missing_or_unknown_is_said(monkeypatch):
    monkeypatch.setattr(against_diffusers, "NEEDED", ("numpy", "no_such_library"))
    with pytest.raises(SystemExit, match=r"^error: no_such_library not installed: pip install"):
        run(monkeypatch)
    monkeypatch.setattr(against_diffusers, "NEEDED", ("numpy",))
    with pytest.raises(SystemExit, match=r"^error: \['fly'\] are no rows; there are 'dit forward'"):
        run(monkeypatch, "--rows=text,fly")
    with pytest.raises(SystemExit, match=r"^error: 0 repeats measure nothing; use at least 1"):
        run(monkeypatch, "--repeats=0")


def test_a_row_is_measured_on_both_sides(monkeypatch, capfd):
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library)
    run(monkeypatch, "--small", "--rows=text,sampling", "--repeats=2")
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1::2]] == ["text", "sampling"]
    assert all("GFLOP/s" in line for line in lines[2::2])
