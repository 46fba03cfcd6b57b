"""Open models: published sizes fit, both layouts are read, exactly and with little memory."""

import json
import pathlib
import re
import shutil
import sys
import tracemalloc
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.weights.diffusers import (
    dit_to_diffusers,
    image_to_transformers,
    text_to_transformers,
    vae_to_diffusers,
)
from sora_jax.weights.entries import list_entries
from sora_jax.weights.hub import fetch
from sora_jax.weights.original import to_diffusers_name
from sora_jax.weights.streaming import check_part, lay_out, read_part
from sora_jax.weights.tensor_files import Stored, list_tensors
from sora_jax.weights.wan import open_model
from sora_jax.weights.wan_config import with_image_reader
from tests.weights.open_folders import (
    PIPELINE,
    copy_image_pipeline,
    edit_json,
    load_layout,
    write_published,
    write_sparse,
)

SINGLE = "diffusion_pytorch_model.safetensors"
IMAGE_MLP = {"norm1": 0, "ff.net.0.proj": 1, "ff.net.2": 3, "norm2": 4}
DITS = ("dit", "dit_low")


@pytest.mark.parametrize("images", [False, True])
def test_there_and_back_and_there_is_exact_in_every_bit(tmp_path, images):
    model = open_model(copy_image_pipeline(tmp_path / "open") if images else PIPELINE)
    back = {
        "dit": dit_to_diffusers,
        "vae": vae_to_diffusers,
        "text": text_to_transformers,
        "image": image_to_transformers,
    }
    assert ("image" in model.configs) == images
    for part, cfg in model.configs.items():
        files = {stored.file for stored in model.tensors[part].values()}
        theirs = {name: x for file in files for name, x in load_file(file).items()}
        if part == "image":
            theirs = {f"vision_model.{name}": x for name, x in theirs.items()}
        tensors = back[part](read_part(model.tensors[part], part, cfg, None), cfg)
        assert tensors.keys() == theirs.keys()
        for name, x in theirs.items():
            assert (tensors[name].dtype, tensors[name].tobytes()) == (x.dtype, x.tobytes())


# Width, layers, heads and width of the MLP of each published transformer, and its parameters.
PUBLISHED = {
    "1.3b": (1536, 30, 12, 8960, 1.419e9),
    "14b": (5120, 40, 40, 13824, 14.289e9),
    "a14b": (5120, 40, 40, 13824, 14.289e9),
    "i2v-a14b": (5120, 40, 40, 13824, 14.289e9),
    "5b": (3072, 30, 24, 14336, 5.000e9),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_models_fit(tmp_path, size):
    """All names and shapes of the whole model, over files that hold no numbers."""
    model = open_model(write_published(tmp_path / "open", size))
    *shape, count = PUBLISHED[size]
    parts = {"vae", "dit", "text"} | ({"dit_low"} if size.endswith("a14b") else set())
    assert set(model.configs) == set(model.tensors) == parts
    dit = model.configs["dit"]
    assert [dit.width, dit.layers, dit.heads, dit.mlp_width] == shape
    numbers = {
        part: sum(
            np.prod(shape) for shape, _ in lay_out(model.tensors[part], part, cfg, None).values()
        )
        for part, cfg in model.configs.items()
    }
    assert numbers["dit"] == numbers.get("dit_low", numbers["dit"])
    assert numbers["dit"] == pytest.approx(count, rel=1e-3)
    assert numbers["text"] == pytest.approx(5.681e9, rel=1e-3)
    assert numbers["vae"] == pytest.approx(705e6 if size == "5b" else 127e6, rel=1e-2)
    channels = 48 if size == "5b" else 16
    assert dit.latent_channels == len(model.mean) == len(model.std) == channels
    assert dit.image_channels == (20 if size == "i2v-a14b" else 0) and not dit.image_width


def test_a_published_model_that_sees_images_fits(tmp_path):
    folder = write_published(tmp_path / "open", "i2v-14b")
    model = open_model(folder)
    dit, image = model.configs["dit"], model.configs["image"]
    assert (dit.image_channels, dit.image_width, dit.image_positions) == (20, 1280, 0)
    assert image == ImageConfig() and image.tokens == 257
    numbers = {
        part: sum(
            np.prod(shape) for shape, _ in lay_out(model.tensors[part], part, cfg, None).values()
        )
        for part, cfg in model.configs.items()
    }
    assert numbers["dit"] == pytest.approx(16.396e9, rel=1e-3)
    assert numbers["image"] == pytest.approx(630.8e6, rel=1e-3)
    # An encoder of another size, whole by itself.
    edit_json(folder / "image_encoder" / "config.json", patch_size=16)
    with pytest.raises(ValueError, match=r"embedding.weight' has shape"):
        open_model(folder)


@pytest.mark.parametrize(
    "size, reads",
    [("i2v-a14b", (20, 0, 0)), ("i2v-14b", (20, 1280, 0)), ("flf2v-14b", (20, 1280, 514))],
)
def test_published_transformers_that_see_images_fit_in_either_layout(size, reads):
    _, shapes = load_layout(size)
    assert {to_diffusers_name(original_name(name)) for name in shapes} == set(shapes)
    names = {original_name(name) for name in shapes}
    assert ("img_emb.proj.4.bias" in names) == ("blocks.39.cross_attn.k_img.bias" in names)
    tensors = {n: Stored(pathlib.Path(), n, s, np.dtype("f4")) for n, s in shapes.items()}
    config = DiTConfig(5120, 40, 40, 13824, image_channels=20)
    config = with_image_reader(config, shapes)
    assert (config.image_channels, config.image_width, config.image_positions) == reads
    check_part(tensors, "dit", config)


def original_name(name):
    """Wan's name of a tensor of diffusers, from the table of docs/open_weights.md."""
    for theirs, ours in (
        *((f"image_embedder.{n}.", f"img_emb.proj.{i}.") for n, i in IMAGE_MLP.items()),
        ("image_embedder.pos_embed", "img_emb.emb_pos"),
        *((f".add_{letter}_proj.", f".{letter}_img.") for letter in "kv"),
        ("norm_added_k", "norm_k_img"),
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
    _, shapes = load_layout("1.3b")
    write_sparse(tmp_path / SINGLE, {original_name(n): s for n, s in shapes.items()})
    sizes = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "in_dim": 16, "out_dim": 16}
    more = {"_class_name": "WanModel", "model_type": "t2v", "num_heads": 12, "num_layers": 30}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **more}))
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"")
    message = r"lacks the folders vae, text_encoder, tokenizer \(Wan2.1_VAE.pth are pickles"
    with pytest.raises(FileNotFoundError, match=message):
        open_model(tmp_path)
    add_companions(tmp_path, "1.3b")
    assert open_model(tmp_path).configs["dit"] == DiTConfig(prediction="velocity")
    edit_json(tmp_path / "config.json", model_type="vace")
    with pytest.raises(ValueError, match="model_type is 'vace'"):
        open_model(tmp_path)


def add_companions(folder, size):
    """What a folder in Wan's own layout holds as pickles, of diffusers' folder."""
    whole = write_published(folder / "diffusers", size)
    for name in ("vae", "text_encoder", "tokenizer"):
        (whole / name).rename(folder / name)


def write_original_sparse(folder, size, **config):
    sizes, shapes = load_layout(size)
    folder.mkdir(exist_ok=True)
    write_sparse(folder / SINGLE, {original_name(n): s for n, s in shapes.items()})
    names = {
        "num_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "ffn_dim": "ffn_dim",
        "in_channels": "in_dim",
        "out_channels": "out_dim",
        "freq_dim": "freq_dim",
    }
    ours = {ours: sizes[theirs] for theirs, ours in names.items()}
    more = {"_class_name": "WanModel", "dim": 128 * sizes["num_attention_heads"]}
    (folder / "config.json").write_text(json.dumps({**ours, **more, **config}))


def test_wans_own_folder_of_a_model_that_sees_images(tmp_path):
    write_original_sparse(tmp_path, "i2v-14b", model_type="i2v")
    add_companions(tmp_path, "i2v-14b")
    with pytest.raises(FileNotFoundError, match=r"image_encoder, image_processor; .*I2V-14B-480P"):
        open_model(tmp_path)
    for name in ("image_encoder", "image_processor"):
        (tmp_path / "diffusers" / name).rename(tmp_path / name)
    model = open_model(tmp_path)
    reads = DiTConfig(
        5120, 40, 40, 13824, prediction="velocity", image_channels=20, image_width=1280
    )
    assert model.configs["dit"] == reads and model.configs["image"] == ImageConfig()


def test_wans_own_folder_of_5b_is_read(tmp_path):
    write_original_sparse(tmp_path, "5b", model_type="ti2v")
    with pytest.raises(FileNotFoundError, match=r"copy them from Wan-AI/Wan2.2-TI2V-5B-Diffusers"):
        open_model(tmp_path)
    add_companions(tmp_path, "5b")
    model = open_model(tmp_path)
    assert model.configs["dit"] == DiTConfig(3072, 30, 24, 14336, 48, prediction="velocity")
    assert (model.settings["fps"], model.settings["shift"]) == (24.0, 5.0)


@pytest.mark.parametrize(
    "size, kind, sampling",
    [("14b", "t2v", [0.875, 12.0, 40]), ("i2v-a14b", "i2v", [0.9, 5.0, 40])],
)
def test_wans_own_folder_of_two_experts_is_read(tmp_path, size, kind, sampling):
    for name in ("high_noise_model", "low_noise_model"):
        write_original_sparse(tmp_path / name, size, model_type=kind)
    add_companions(tmp_path, size)
    model = open_model(tmp_path)
    files = {part: {x.file.parent.name for x in model.tensors[part].values()} for part in DITS}
    assert files == {"dit": {"high_noise_model"}, "dit_low": {"low_noise_model"}}
    assert [model.settings[name] for name in ("boundary", "shift", "steps")] == sampling
    assert all("blocks.39.attn1.to_q.weight" in model.tensors[part] for part in DITS)
    shutil.rmtree(tmp_path / "high_noise_model")
    with pytest.raises(FileNotFoundError, match=r"high_noise_model/config.json is missing"):
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
    with pytest.raises(FileNotFoundError, match=r"add the commit: Wan-AI/Wan2.1@ and the 40"):
        fetch("Wan-AI/Wan2.1")
    with pytest.raises(ValueError, match="'main' is no commit of 40 digits"):
        fetch("Wan-AI/Wan2.1@main")
    asked = {}

    def download(repository, *, revision, allow_patterns):
        asked.update(repository=repository, revision=revision, files=allow_patterns)
        return str(PIPELINE)

    def install(function):
        hub = types.SimpleNamespace(snapshot_download=function)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)

    source = f"Wan-AI/Wan2.1@{'a1' * 20}"
    install(download)
    assert fetch(source) == PIPELINE
    assert (asked["repository"], asked["revision"]) == ("Wan-AI/Wan2.1", "a1" * 20)
    assert not any(name.endswith((".bin", ".pth", ".py")) for name in asked["files"])
    install(lambda *_, **__: 1 / 0)
    with pytest.raises(OSError, match="cannot be downloaded"):
        fetch(source)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match="pip install huggingface_hub, or download"):
        fetch(source)
    (tmp_path / "Wan-AI" / "Wan2.1").mkdir(parents=True)
    assert fetch("Wan-AI/Wan2.1") == "Wan-AI/Wan2.1"
