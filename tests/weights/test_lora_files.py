"""Files of adapters: what is written, what is read, and what is refused before anything changes."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_lora import LORA, draw_adapters, merged
from tiny_model import DIT_CONFIG, draw_params, write_model

import sora_jax
from sora_jax.digests import weights_sha256
from sora_jax.models.dit import init_dit
from sora_jax.models.lora import scaled
from sora_jax.weights import lora_folder, lora_said
from sora_jax.weights.__main__ import export
from sora_jax.weights.diffusers import dit_from_diffusers, dit_to_diffusers
from sora_jax.weights.lora import FILE, lora_to_diffusers, merge_lora
from sora_jax.weights.lora_folder import save_lora, transformer_sha256

ADAPTERS = draw_adapters()
TENSORS = lora_to_diffusers(scaled(ADAPTERS, LORA.scale), DIT_CONFIG)
NAME = "transformer.blocks.1.attn1.to_q"


def base():
    return draw_params(init_dit, DIT_CONFIG)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def merge(tensors, path, metadata=None):
    save_file(tensors, path / FILE, metadata=metadata)
    params = base()
    merge_lora(params, path / FILE, DIT_CONFIG)
    return params


def test_a_file_adds_products_to_the_weights_that_it_names(tmp_path):
    """By diffusers' names and layouts, in which the order of channels is another."""
    state = dit_to_diffusers(base(), DIT_CONFIG)
    for name in {key.rpartition(".lora")[0] for key in TENSORS}:
        a, b = (TENSORS[f"{name}.lora_{part}.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1] == LORA.rank
        state[f"{name.removeprefix('transformer.')}.weight"] += b @ a
    assert len(TENSORS) == 2 * 2 * 10
    expected = dit_from_diffusers(state, DIT_CONFIG)
    assert_close(merge(TENSORS, tmp_path), expected)
    assert_close(merged(base(), ADAPTERS, LORA.scale), expected)


def rename(tensors, prefix, down="lora_A", up="lora_B", plain=False):
    """The same by Wan's own names, as other trainers write them."""
    names = {
        **{"attn1": "self_attn", "attn2": "cross_attn", "to_out.0": "o"},
        **{"to_q": "q", "to_k": "k", "to_v": "v", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"},
    }
    result = {}
    for key, x in tensors.items():
        module, _, leaf = key.removeprefix("transformer.").partition(".lora_")
        for theirs, own in names.items():
            module = module.replace(theirs, own)
        module = module.replace(".", "_") if plain else module
        result[f"{prefix}{module}.{ {'A': down, 'B': up}[leaf[0]] }.weight"] = x
    return result


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("diffusion_model.", {}),
        ("diffusion_model.", {"down": "lora_down", "up": "lora_up"}),
        ("lora_unet_", {"down": "lora_down", "up": "lora_up", "plain": True}),
    ],
)
def test_other_trainers_names_and_alphas_are_read(tmp_path, prefix, names):
    plain = rename(lora_to_diffusers(ADAPTERS, DIT_CONFIG), prefix, **names)
    modules = {key.rsplit(".", 2)[0] for key in plain}
    alphas = {f"{module}.alpha": np.array(LORA.alpha, np.float32) for module in modules}
    expected = merged(base(), ADAPTERS, LORA.scale)
    assert_close(merge({**plain, **alphas}, tmp_path), expected)


def said(**changes):
    settings = {"r": LORA.rank, "lora_alpha": LORA.alpha, "target_modules": ["to_q"], **changes}
    return {
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})
    }


def test_what_diffusers_and_peft_say_of_alpha_counts(tmp_path):
    plain = lora_to_diffusers(ADAPTERS, DIT_CONFIG)
    expected = merged(base(), ADAPTERS, LORA.scale)
    assert_close(merge(plain, tmp_path, said()), expected)
    changes = {"lora_alpha": LORA.alpha * LORA.rank**-0.5, "use_rslora": True}
    assert_close(merge(plain, tmp_path, said(**changes)), expected)
    # One module with an alpha of its own: twice the factor, for half of its A.
    other = {**plain, f"{NAME}.lora_A.weight": plain[f"{NAME}.lora_A.weight"] / 2}
    own = said(alpha_pattern={NAME.removeprefix("transformer."): 2 * LORA.alpha})
    assert_close(merge(other, tmp_path, own), expected)
    # peft itself has another prefix, and says alpha in a file beside it.
    peft = {f"base_model.model.{k.removeprefix('transformer.')}": x for k, x in plain.items()}
    with pytest.raises(FileNotFoundError, match=r"lacks adapter_config.json beside it"):
        merge(peft, tmp_path)
    beside = {"r": LORA.rank, "lora_alpha": LORA.alpha}
    (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    assert_close(merge(peft, tmp_path), expected)


def test_patterns_are_expressions_for_the_ends_of_names(tmp_path):
    """Of any layer, the first that matches, as peft has them."""
    names = ["blocks.1.attn1.to_q", "blocks.0.attn2.to_q", "blocks.1.ffn.net.2"]
    names += ["condition_embedder.time_proj", "condition_embedder.text_embedder.linear_1"]
    alphas, ranks = [4, 5, 6, 12, 6], [1, 1, 3, 2, 3]
    patterns = {
        "alpha_pattern": {r"blocks\.1\..*to_q": 4, "to_q": 5.0, "time_proj": 12, "o_proj": 7},
        "rank_pattern": {r"attn\d.to_q": 1, "condition_embedder.time_proj": 2, "net": 9},
    }
    state = dit_to_diffusers(base(), DIT_CONFIG)
    tensors = {}
    for name, alpha, rank in zip(names, alphas, ranks):
        outputs, inputs = state[f"{name}.weight"].shape
        rng = np.random.default_rng(len(tensors))
        a, b = (np.float32(rng.normal(size=size)) for size in ((rank, inputs), (outputs, rank)))
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        state[f"{name}.weight"] = state[f"{name}.weight"] + alpha / rank * (b @ a)
    tensors = {f"transformer.{key}": x for key, x in tensors.items()}
    found = merge(tensors, tmp_path, said(lora_alpha=6, **patterns))
    assert_close(found, dit_from_diffusers(state, DIT_CONFIG))


def test_patterns_that_people_write_are_soon_matched():
    layers = "|".join(map(str, range(40)))
    for pattern, name in (
        (rf"blocks\.({layers})\.attn(1|2)\.to_(q|k|v|out\.0)", "blocks.7.attn2.to_out.0"),
        (r".*blocks\.\d+\.(?:attn1|attn2)\.to_(q|k|v)$", "transformer.blocks.31.attn1.to_k"),
        (r"^blocks\.[0-9]+\..*", "blocks.12.ffn.net.2"),
    ):
        ((compiled, value),) = lora_said._compile({pattern: 4})
        assert compiled.match(name) and value == 4
        assert not compiled.match("condition_embedder.time_proj")


def test_a_sum_that_its_dtype_cannot_hold_is_refused(folders):
    model, run = folders
    a = np.full((3, 32), 200.0, np.float32)
    adapters = run.parent / "large.safetensors"
    save_file({f"{NAME}.lora_A.weight": a, f"{NAME}.lora_B.weight": 1 * a.T}, adapters)
    assert sora_jax.load(model, lora=adapters, dtype="bfloat16")
    remedy = "attn1.to_q.weight' with its adapters is beyond what float16 holds; .* in bfloat16 or"
    with pytest.raises(ValueError, match=remedy):
        sora_jax.load(model, lora=adapters, dtype="float16")


A, B = f"{NAME}.lora_A.weight", f"{NAME}.lora_B.weight"


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({A: None}, None, r"has '.*to_q.lora_B.weight' without the A of its adapter"),
        ({B: None}, None, r"without the B of its adapter"),
        ({A: np.zeros((3, 31))}, None, r"to_q.lora_A.weight' has shape \(3, 31\).*has \(3, 32\)"),
        ({B: np.zeros((32, 4))}, None, r"to_q.lora_B.weight' has shape \(32, 4\).*of rank 3"),
        ({A: np.zeros((0, 32)), B: np.zeros((32, 0))}, None, r"has shape \(0, 32\)"),
        ({A: np.full((3, 32), np.nan)}, None, "holds NaN or infinity"),
        ({"transformer.head.lora_A.weight": np.zeros((3, 32))}, None, "belongs to no matrix"),
        ({A.replace(".1.", ".2."): np.zeros((3, 32))}, None, "to no matrix of the transformer"),
        ({f"{NAME}.diff": np.zeros((32, 32))}, None, "to_q.diff' is no part of an adapter"),
        ({f"{NAME}.lora_B.bias": np.zeros(32)}, None, "lora_B.bias' is no part of an adapter"),
        ({A.replace("lora_A", "lora_down"): np.zeros((3, 32))}, None, "twice, by two names"),
        ({f"{NAME}.alpha": np.zeros(2)}, None, "to_q.alpha' must be one number"),
        (None, None, "holds no adapter"),
        ({}, said(r=4), "is of rank 3, and the file says that it is 4"),
        ({}, said(lora_alpha=None), "lora_alpha is None, and must be positive"),
        ({}, said(use_dora=True), "use_dora is True, and only low-rank adapters"),
        ({}, said(rank_pattern={"to_q": 4}), "to_q.lora_A.weight' is of rank 3, .* that it is 4"),
        ({}, said(alpha_pattern={"to_q": -3}), "must be positive numbers by names of modules"),
        ({}, said(alpha_pattern={"to_q": True}), "must be positive numbers by names of modules"),
        ({}, said(alpha_pattern={"(": 3}), r"alpha_pattern: '\(' is no expression"),
        (
            {},
            said(alpha_pattern={"([a-z0-9_.]+)+X": 3}),
            r"X' may take too long .* repeat no group",
        ),
        ({}, said(alpha_pattern={"(?x:([a-z0-9_.]+) +X)": 3}), "may take too long"),
        ({}, said(rank_pattern={40 * "(.|.)" + "X": 3}), "may take too long"),
        ({}, said(rank_pattern={12 * ".*" + "X": 3}), "may take too long"),
        ({}, said(rank_pattern={f"{i}.*.*.*X": 3 for i in range(9)}), "may take too long"),
        ({}, said(rank_pattern={"a" * 2000: 3}), "may take too long"),
        ({}, said(r=True), "r is True, and must be positive"),
        ({}, said(lora_alpha=10**400), "is not JSON .a whole number of 401 digits"),
        ({}, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata is not JSON"),
    ],
)
def test_a_file_that_is_not_for_this_transformer_is_refused(tmp_path, changes, metadata, message):
    tensors = {} if changes is None else {**TENSORS, **changes}
    tensors = {key: np.array(x, np.float32) for key, x in tensors.items() if x is not None}
    save_file(tensors, tmp_path / FILE, metadata=metadata)
    params = base()
    with pytest.raises(ValueError, match=message):
        merge_lora(params, tmp_path, DIT_CONFIG)
    if "NaN" not in message:
        jax.tree.map(np.testing.assert_array_equal, params, base())


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path):
    save_file(TENSORS, tmp_path / FILE)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated or damaged"):
        merge_lora(base(), tmp_path, DIT_CONFIG)
    (tmp_path / "lora.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"lora.pt is a pickle.*as .safetensors"):
        merge_lora(base(), tmp_path / "lora.pt", DIT_CONFIG)
    for missing in (tmp_path / "nothing", "~nobody_of_this_name/lora.safetensors"):
        with pytest.raises(FileNotFoundError, match="nor a folder with pytorch_lora_weights"):
            merge_lora(base(), missing, DIT_CONFIG)


@pytest.fixture
def folders(tmp_path):
    """A model, and the folder of a LoRA run for it that samples in more steps."""
    model, run = write_model(tmp_path / "model"), tmp_path / "run" / "model"
    settings = json.loads((model / "model.json").read_text())
    settings = {k: v for k, v in settings.items() if k not in ("format", "parts")} | {"steps": 3}
    save_lora(run, TENSORS, model, transformer_sha256(model), settings)
    return model, run


def test_a_lora_run_is_loaded_with_its_model(folders):
    model, run = folders
    loaded = sora_jax.load(run.parent)
    assert_close(jax.device_get(loaded.params["dit"]), merged(base(), ADAPTERS, LORA.scale))
    assert loaded.settings.steps == 3
    given = sora_jax.load(model, lora=run / FILE)
    jax.tree.map(np.testing.assert_array_equal, given.params, loaded.params)
    assert given.settings.steps == 2
    half = sora_jax.load(run, dtype="bfloat16").params["dit"]
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}
    with pytest.raises(ValueError, match=r"is of a LoRA run and has adapters already; leave out"):
        sora_jax.load(run, lora=run / FILE)


def test_a_lora_run_is_exported_as_one_model(folders, tmp_path):
    model, run = folders
    export(str(run), str(tmp_path / "one"))
    export(str(model), str(tmp_path / "two"), lora=str(run))
    one, two, loaded = (
        sora_jax.load(folder) for folder in (tmp_path / "one", tmp_path / "two", run)
    )
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert one.settings == loaded.settings
    changed = jax.device_get((one.params["dit"], loaded.params["dit"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *changed)
    before = (model / "dit.safetensors").read_bytes()
    for output, what in ((model, "the model of its adapters"), (run, "the checkpoint itself")):
        with pytest.raises(ValueError, match=f"--output=.* is {what}; name another folder"):
            export(str(run), str(output))
    assert (model / "dit.safetensors").read_bytes() == before


def test_a_lora_run_is_checked_once_a_load(folders, tmp_path, monkeypatch):
    _, run = folders
    calls = []

    def count(file):
        calls.append(file)
        return weights_sha256(file)

    monkeypatch.setattr(lora_folder, "weights_sha256", count)
    export(str(run), str(tmp_path / "one"))
    assert len(calls) == 1


def test_a_lora_run_whose_model_is_another_one_or_gone_is_refused(folders):
    model, run = folders
    (model / "dit.safetensors").write_bytes((model / "text.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"there is another one now; if it was moved, give the mo"):
        sora_jax.load(run)
    shutil.rmtree(model)
    with pytest.raises(FileNotFoundError, match=r"if it was moved, give the model and the adapte"):
        sora_jax.load(run)
