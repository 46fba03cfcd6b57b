"""What is compiled first, and what is not at all, when a mesh is looked for."""

import importlib.util

import pytest

from configs import shapes_dit
from sora_jax.pod import search
from sora_jax.pod.checks import check_division
from sora_jax.pod.chips import Slice
from sora_jax.pod.compiling import _last_words
from sora_jax.pod.search import rank
from sora_jax.pod.sizes import read_sizes

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: libtpu is not installed"
)


@pytest.fixture(scope="module")
def config():
    config = shapes_dit.get_config()
    config.dit.layers = 2
    config.optimizer.muon_learning_rate = 0.0
    return config


@needs_compiler
def test_candidates_divide_and_come_by_their_guess(config):
    sizes = read_sizes(config, "17x64x96")
    found = rank(config, Slice("v6e", (2, 4)), sizes, 100)
    for one in found:
        check_division(sizes, one.mesh, 100)
    assert {one.mesh["tensor"] for one in found} == {1, 2, 4}  # of 4 heads
    assert max(one.mesh["data"] * one.mesh["fsdp"] for one in found) == 4  # of 100 clips
    assert [one.guess for one in found] == sorted(one.guess for one in found)
    by_remat = {one.remat: one for one in found if one.mesh["data"] == one.mesh["context"] == 2}
    assert by_remat["blocks"].bound < by_remat["products"].bound < by_remat["none"].bound
    assert by_remat["blocks"].guess > by_remat["products"].guess > by_remat["none"].guess


@needs_compiler
def test_a_batch_that_no_mesh_holds_is_refused(config):
    sizes = read_sizes(config, "17x64x96")
    with pytest.raises(ValueError, match=r"no mesh of v5e:1x1 .* for want of memory.*--batch"):
        rank(config, Slice("v5e", (1, 1)), sizes, 100_000)


@needs_compiler
def test_chips_beyond_the_heads_are_guessed_to_cost_a_ring(config):
    sizes = read_sizes(config, "17x512x512")
    found = rank(config, Slice("v6e", (4, 4)), sizes, 16)
    guess = {tuple(one.mesh.values()): one.guess for one in found if one.remat == "none"}
    # 4 heads: context 4 exchanges them all, context 8 is a ring of two such groups.
    assert guess[4, 1, 4, 1] < guess[2, 1, 8, 1]


@needs_compiler
def test_of_the_best_mesh_other_remats_are_compiled_too(config, monkeypatch, capsys):
    monkeypatch.setattr(search, "MESHES", 1)
    monkeypatch.setattr(search, "TRIES", 2)
    config = config.copy_and_resolve_references()
    config.text.layers = config.dit.layers = 1
    config.remat = "blocks"  # not what a guess would begin with
    found = search.search(config, Slice("v6e", (1, 1)), "5x16x32", 4)
    first, second = found["candidates"]
    assert first["fits"] and second["fits"] and first["remat"] == "blocks"
    assert first["mesh"] == second["mesh"] and first["remat"] != second["remat"]
    seconds = [one["seconds"]["step"] for one in (first, second)]
    assert found["best"]["seconds"]["step"] == min(seconds)
    (advice,) = capsys.readouterr().out.splitlines()[-1:]
    assert advice.startswith("recommended: ") and advice.endswith(found["best"]["remat"])


def test_a_compiler_that_aborts_leaves_one_line():
    said = "F1126 17:26:53.58  11625 fusion_emitter.cc:3291] Check failed: a == b (1 vs. 0) \n*** x"
    line = _last_words(-6, said)
    assert line.startswith("the compiler ended with SIGABRT: fusion_emitter.cc:3291] Check failed")
    assert "another mesh" in line and "\n" not in line
    assert "status 1: it said nothing" in _last_words(1, "")
