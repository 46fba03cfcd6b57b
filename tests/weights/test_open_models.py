"""Open models are read whole or not at all: every name, shape and file is checked before."""

import json
import pathlib
import re
import shutil
import tracemalloc

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.models.dit import DiTConfig
from sora_jax.weights.__main__ import import_open
from sora_jax.weights.diffusers import (
    dit_to_diffusers,
    list_entries,
    text_to_transformers,
    vae_to_diffusers,
)
from sora_jax.weights.hub import fetch
from sora_jax.weights.original import to_diffusers_name
from sora_jax.weights.streaming import check_part, lay_out, read_part
from sora_jax.weights.tensor_files import Stored, list_tensors
from sora_jax.weights.wan import open_model
from tests.weights.open_folders import (
    PIPELINE,
    copy_pipeline,
    edit_json,
    load_layout,
    write_published,
    write_sparse,
)

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"


@pytest.fixture
def folder(tmp_path):
    return copy_pipeline(tmp_path / "open")


def first_shard(folder):
    return min((folder / "transformer").glob("*.safetensors"))


def edit_tensors(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def cut(folder):
    file = first_shard(folder)
    file.write_bytes(file.read_bytes()[:-100])


def lengthen(folder):
    with open(folder / "vae" / SINGLE, "ab") as file:
        file.write(b"more")


def swap_header(folder):
    """A header that promises other places of its numbers than there are."""
    file = folder / "vae" / SINGLE
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1))


def lose_shard(folder):
    first_shard(folder).unlink()


def lead_elsewhere(folder):
    file = folder / "transformer" / INDEX
    index = json.loads(file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../secret.safetensors")
    file.write_text(json.dumps(index))


def move_in_index(folder):
    file = folder / "transformer" / INDEX
    index = json.loads(file.read_text())
    places = sorted(set(index["weight_map"].values()))
    index["weight_map"]["patch_embedding.weight"] = places[1]
    file.write_text(json.dumps(index))


def add_tensor(folder):
    edit_tensors(folder / "vae" / SINGLE, lambda x: x.update(extra=np.zeros(3, np.float32)))


def drop_tensor(folder):
    edit_tensors(folder / "vae" / SINGLE, lambda x: x.pop("quant_conv.bias"))


def reshape_tensor(folder):
    reshaped = {"quant_conv.bias": np.zeros((4, 2), np.float32)}
    edit_tensors(folder / "vae" / SINGLE, lambda x: x.update(reshaped))


def count_numbers(folder):
    counted = {"quant_conv.bias": np.zeros(8, np.int64)}
    edit_tensors(folder / "vae" / SINGLE, lambda x: x.update(counted))


def poison(folder):
    def edit(tensors):
        tensors["post_quant_conv.bias"] = np.full_like(tensors["post_quant_conv.bias"], np.nan)

    edit_tensors(folder / "vae" / SINGLE, edit)


def second_embedding(folder):
    def edit(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + 1

    edit_tensors(folder / "text_encoder" / "model.safetensors", edit)


def pickle_only(folder):
    (folder / "vae" / SINGLE).rename(folder / "vae" / "diffusion_pytorch_model.bin")


def no_index(folder):
    (folder / "transformer" / INDEX).unlink()


def no_tokenizer(folder):
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")


def config(name, **changes):
    return lambda folder: edit_json(folder / name, **changes)


FAULTS = {
    "truncated": (cut, r"00001-of-00002.* truncated or damaged .* download it again"),
    "longer": (lengthen, "truncated or damaged"),
    "tampered": (swap_header, "truncated or damaged"),
    "shard": (lose_shard, "00001-of-00002.safetensors is missing; download it again"),
    "traversal": (lead_elsewhere, "may only name .safetensors files beside it"),
    "index": (move_in_index, "'patch_embedding.weight', which .* looks for in"),
    "unknown": (add_tensor, "'extra' is unknown"),
    "missing": (drop_tensor, "'quant_conv.bias' is missing"),
    "shape": (reshape_tensor, r"'quant_conv.bias' has shape \(4, 2\), .* asks for \(8,\)"),
    "type": (count_numbers, "is I64, and only"),
    "nan": (poison, "'post_quant_conv.bias' holds NaN or infinity"),
    "copies": (second_embedding, "'shared.weight' and 'encoder.embed_tokens.weight' differ"),
    "pickle": (pickle_only, "a pickle, which can run any program and is not read; get the same"),
    "no index": (no_index, "without diffusion_pytorch_model.safetensors.index.json"),
    "tokenizer": (no_tokenizer, "spiece.model only; put the tokenizer.json"),
    "json": (lambda f: (f / "vae" / "config.json").write_text("{"), "is not JSON"),
    "list": (lambda f: (f / "vae" / "config.json").write_text("[]"), "no JSON object"),
    "no config": (lambda f: (f / "vae" / "config.json").unlink(), "config.json is missing"),
    "images": (config("transformer/config.json", in_channels=36), "images are given beside"),
    "clip": (config("transformer/config.json", image_dim=1280), "image_dim is 1280"),
    "family": (config("transformer/config.json", _class_name="FluxTransformer"), "of a Flux"),
    "pipeline": (config("model_index.json", _class_name="WanVACEPipeline"), "of a WanVACEPipe"),
    "experts": (config("model_index.json", boundary_ratio=0.875), "two transformers"),
    "t5": (config("text_encoder/config.json", model_type="t5"), "model_type is 't5'"),
    "scheduler": (config("scheduler/scheduler_config.json", solver_order=3), "solver_order is 3"),
    "shift": (config("scheduler/scheduler_config.json", flow_shift=-1), "shift -1.0 must be"),
    "deep": (config("transformer/config.json", num_layers=10**6), "too few for a depth of 1000000"),
    "huge": (config("transformer/config.json", ffn_dim=10**30), "ffn_dim is 1000"),
    "heads": (config("transformer/config.json", num_attention_heads=2.5), "attention_heads is 2.5"),
    "width": (config("transformer/config.json", ffn_dim=41), "has shape"),
    "std": (config("vae/config.json", latents_std=[1, 1, 0, 1]), "latents_std 0.0 must be pos"),
    "mean": (config("vae/config.json", latents_mean=[1, 1]), "must be 4 numbers"),
    "words": (config("text_encoder/config.json", vocab_size=5), "has shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_and_nothing_is_written(folder, tmp_path, fault):
    do, message = FAULTS[fault]
    do(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){message}") as caught:
        import_open(str(folder), str(tmp_path / "out"))
    assert str(tmp_path) in str(caught.value)
    out = tmp_path / "out"
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("fault", ["truncated", "unknown", "nan"])
def test_loading_refuses_what_importing_refuses(folder, fault):
    do, message = FAULTS[fault]
    do(folder)
    with pytest.raises(ValueError, match=message):
        sora_jax.load(folder)


def test_there_and_back_and_there_is_exact_in_every_bit():
    model = open_model(PIPELINE)
    back = {
        "dit": dit_to_diffusers,
        "vae": vae_to_diffusers,
        "text": text_to_transformers,
    }
    for part, cfg in model.configs.items():
        files = {stored.file for stored in model.tensors[part].values()}
        theirs = {name: x for file in files for name, x in load_file(file).items()}
        tensors = back[part](read_part(model.tensors[part], part, cfg, None), cfg)
        assert tensors.keys() == theirs.keys()
        for name, x in theirs.items():
            assert (tensors[name].dtype, tensors[name].tobytes()) == (x.dtype, x.tobytes())


@pytest.mark.parametrize("size", ["1.3b", "14b"])
def test_published_models_fit(tmp_path, size):
    """All names and shapes of the whole model, over files that hold no numbers."""
    model = open_model(write_published(tmp_path / "open", size))
    shape = {"1.3b": (1536, 30, 12, 8960), "14b": (5120, 40, 40, 13824)}[size]
    dit = model.configs["dit"]
    assert (dit.width, dit.layers, dit.heads, dit.mlp_width) == shape
    numbers = {
        part: sum(
            np.prod(shape) for shape, _ in lay_out(model.tensors[part], part, cfg, None).values()
        )
        for part, cfg in model.configs.items()
    }
    assert numbers["dit"] == pytest.approx({"1.3b": 1.419e9, "14b": 14.289e9}[size], rel=1e-3)
    assert numbers["text"] == pytest.approx(5.681e9, rel=1e-3)
    assert numbers["vae"] == pytest.approx(127e6, rel=1e-2)


def test_the_transformer_of_5b_fits():
    _, shapes = load_layout("5b")
    tensors = {n: Stored(pathlib.Path(), n, s, np.dtype("f4")) for n, s in shapes.items()}
    check_part(tensors, "dit", DiTConfig(3072, 30, 24, 14336, 48))
    with pytest.raises(ValueError, match="has shape"):
        check_part(tensors, "dit", DiTConfig(1536, 30, 12, 14336, 48))


def original_name(name):
    """Wan's name of a tensor of diffusers, from the table of docs/open_weights.md."""
    for theirs, ours in (
        *((f"text_embedder.linear_{i + 1}", f"text_embedding.{2 * i}") for i in range(2)),
        *((f"time_embedder.linear_{i + 1}", f"time_embedding.{2 * i}") for i in range(2)),
        ("time_proj", "time_projection.1"),
        ("condition_embedder.", ""),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("norm2", "norm3"),
        *((f".to_{letter}.", f".{letter}.") for letter in "qkv"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("proj_out", "head.head"),
    ):
        name = name.replace(theirs, ours)
    name = re.sub(r"^scale_shift_table", "head.modulation", name)
    return name.replace("scale_shift_table", "modulation")


def write_original(folder, pipeline):
    """A folder as in Wan's own repository; VAE, text encoder and tokenizer are diffusers'."""
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(pipeline / name, folder / name)
    tensors = {}
    for file in (pipeline / "transformer").glob("*.safetensors"):
        tensors |= {original_name(name): x for name, x in load_file(file).items()}
    save_file(tensors, folder / SINGLE)
    config = {"_class_name": "WanModel", "model_type": "t2v", "eps": 1e-06, "text_len": 512}
    sizes = {"dim": 24, "num_layers": 2, "num_heads": 2, "ffn_dim": 40, "in_dim": 4, "out_dim": 4}
    (folder / "config.json").write_text(json.dumps({**config, **sizes, "freq_dim": 16}))


def test_wans_own_layout_is_the_same_model(tmp_path):
    write_original(tmp_path, PIPELINE)
    # Wan's own configuration has no width of the text, which is UMT5-XXL's.
    with pytest.raises(ValueError, match=r"text_in|text_embedder.linear_1.weight' has shape"):
        open_model(tmp_path)
    renamed = {to_diffusers_name(name) for name in list_tensors(tmp_path, SINGLE[:-12])}
    assert renamed == set(open_model(PIPELINE).tensors["dit"])
    _, shapes = load_layout("1.3b")
    assert {to_diffusers_name(original_name(name)) for name in shapes} == set(shapes)


def test_wans_own_folder_asks_for_what_it_holds_as_pickles(tmp_path):
    config, shapes = load_layout("1.3b")
    write_sparse(tmp_path / SINGLE, {original_name(n): s for n, s in shapes.items()})
    sizes = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "in_dim": 16, "out_dim": 16}
    more = {"_class_name": "WanModel", "model_type": "t2v", "num_heads": 12, "num_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **more}))
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"")
    message = r"lacks the folders vae, text_encoder, tokenizer \(Wan2.1_VAE.pth are pickles"
    with pytest.raises(FileNotFoundError, match=message):
        open_model(tmp_path)
    whole = write_published(tmp_path / "diffusers", "1.3b")
    for name in ("vae", "text_encoder", "tokenizer"):
        (whole / name).rename(tmp_path / name)
    assert open_model(tmp_path).configs["dit"] == DiTConfig(prediction="velocity")
    edit_json(tmp_path / "config.json", model_type="i2v")
    with pytest.raises(ValueError, match="model_type is 'i2v'"):
        open_model(tmp_path)


def test_reading_takes_little_more_memory_than_the_numbers(tmp_path):
    cfg = DiTConfig(128, 12, 2, 512, 4, (1, 2, 2), 64, 32)
    shapes = {n: e.their_shape() for e in list_entries("dit", cfg) for n in e.names()}
    write_sparse(tmp_path / SINGLE, shapes, "F32")
    tensors = list_tensors(tmp_path, SINGLE[:-12])
    tracemalloc.start()
    params = read_part(tensors, "dit", cfg, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * sum(x.nbytes for x in jax.tree.leaves(params))


def test_a_repository_is_named_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="add the commit: Wan-AI/Wan2.1@ and the 40"):
        fetch("Wan-AI/Wan2.1")
    with pytest.raises(ValueError, match="'main' is no commit of 40 digits"):
        fetch("Wan-AI/Wan2.1@main")
    asked = {}

    def download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, files=allow_patterns)
        return str(PIPELINE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch(f"Wan-AI/Wan2.1@{'a1' * 20}") == PIPELINE
    assert (asked["repository"], asked["revision"]) == ("Wan-AI/Wan2.1", "a1" * 20)
    assert not any(name.endswith((".bin", ".pth", ".py")) for name in asked["files"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(OSError, match="cannot be downloaded"):
        fetch(f"Wan-AI/Wan2.1@{'a1' * 20}")
    (tmp_path / "Wan-AI" / "Wan2.1").mkdir(parents=True)
    assert fetch("Wan-AI/Wan2.1") == "Wan-AI/Wan2.1"
