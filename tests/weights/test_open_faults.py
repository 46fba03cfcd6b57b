"""A fault in an open model is one error that names the file, and nothing is loaded or written."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.weights.__main__ import import_open
from tests.weights.open_folders import add_second, copy_image_pipeline, copy_pipeline, edit_json

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"
REPOSITORY = pathlib.Path(__file__).parents[2]


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


def second_transformer(*, boundary_ratio, lost=None, num_layers=2):
    """A second transformer, its last layers left out, or a folder lost."""

    def edit(tensors):
        for name in [n for n in tensors if re.match(r"blocks\.(\d+)", n)]:
            if int(name.split(".")[1]) >= num_layers:
                del tensors[name]

    def do(folder):
        add_second(folder, edit, boundary_ratio)
        edit_json(folder / "transformer_2" / "config.json", num_layers=num_layers)
        if lost:
            shutil.rmtree(folder / lost)

    return do


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
    "images": (
        config("transformer/config.json", in_channels=36),
        "patch_embedding.weight' has shape",
    ),
    "fewer": (config("transformer/config.json", out_channels=8), "4 channels go in and 8 come out"),
    "clip": (config("transformer/config.json", image_dim=1280), "added_kv_proj_dim is None"),
    "tokens": (
        config("transformer/config.json", image_dim=16, added_kv_proj_dim=24),
        "image_width is 16 without image_channels",
    ),
    "family": (config("transformer/config.json", _class_name="FluxTransformer"), "of a Flux"),
    "pipeline": (config("model_index.json", _class_name="WanVACEPipeline"), "of a WanVACEPipe"),
    "one expert": (
        config("model_index.json", boundary_ratio=0.875),
        r"transformer_2 is \[None, None\] and boundary_ratio 0.875; a model has both",
    ),
    "no boundary": (
        config("model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        "boundary_ratio None; a model has both",
    ),
    "boundary": (second_transformer(boundary_ratio=875), "boundary_ratio is 875, and must be betw"),
    "second": (
        second_transformer(boundary_ratio=0.875, lost="transformer_2"),
        "transformer_2/config.json is missing",
    ),
    "unlike": (
        second_transformer(boundary_ratio=0.875, num_layers=1),
        "transformers of high and of low noise have different sizes",
    ),
    "images given": (config("model_index.json", _class_name="WanImageToVideoPipeline"), "with exp"),
    "residual": (config("vae/config.json", is_residual=1), "is_residual is 1, and must be true or"),
    "t5": (config("text_encoder/config.json", model_type="t5"), "model_type is 't5'"),
    "scheduler": (config("scheduler/scheduler_config.json", solver_order=3), "solver_order is 3"),
    "shift": (
        config("scheduler/scheduler_config.json", flow_shift=-1),
        "flow_shift is -1, and must be positive",
    ),
    "predicted": (
        config("scheduler/scheduler_config.json", prediction_type=["sample"]),
        r"prediction_type is \['sample'\], and must be one of",
    ),
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
    assert not out.exists()


def no_processor(folder):
    (folder / "image_processor" / "preprocessor_config.json").unlink()


PROCESSOR = "image_processor/preprocessor_config.json"
IMAGE_FAULTS = {
    "encoder": (
        lambda folder: (folder / "image_encoder" / "model.safetensors").unlink(),
        "holds no model.safetensors",
    ),
    "processor": (no_processor, "preprocessor_config.json is missing"),
    "act": (config("image_encoder/config.json", hidden_act="quick_gelu"), "is 'quick_gelu'"),
    "kind": (config("image_encoder/config.json", model_type="siglip"), "model_type is 'siglip'"),
    "patch": (config("image_encoder/config.json", patch_size=13), "side 28 does not divide by"),
    "layers": (config("image_encoder/config.json", num_hidden_layers=4), "is missing"),
    "crop": (config(PROCESSOR, crop_size={"height": 9, "width": 9}), "crop_size is .*9"),
    "filter": (config(PROCESSOR, resample=2), "resample is 2"),
    "colours": (config(PROCESSOR, image_std=[1, 0, 1]), "std positive"),
    "positions": (
        config("transformer/config.json", pos_embed_seq_len=10),
        "image_embedder.pos_embed' is missing",
    ),
    "width": (
        config("transformer/config.json", image_dim=24),
        "image_embedder.* has shape",
    ),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_a_fault_in_a_model_that_sees_images_is_one_error(tmp_path, fault):
    do, message = IMAGE_FAULTS[fault]
    folder = copy_image_pipeline(tmp_path / "open")
    do(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){message}") as caught:
        import_open(str(folder), str(tmp_path / "out"))
    assert str(tmp_path) in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", ["truncated", "unknown", "nan"])
def test_loading_refuses_what_importing_refuses(folder, fault):
    do, message = FAULTS[fault]
    do(folder)
    with pytest.raises(ValueError, match=message):
        sora_jax.load(folder)


def test_either_name_of_the_embedding_or_both_will_do(folder):
    file = folder / "text_encoder" / "model.safetensors"
    plain = sora_jax.load(folder).params["text"]["embedding"]

    def both(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]

    for edit in (both, lambda tensors: tensors.pop("shared.weight")):
        edit_tensors(file, edit)
        np.testing.assert_array_equal(sora_jax.load(folder).params["text"]["embedding"], plain)


def test_a_number_beyond_float16_asks_for_bfloat16(folder):
    edit_tensors(
        folder / "vae" / SINGLE, lambda x: x.update({"quant_conv.bias": np.full(8, 1e5, "f4")})
    )
    with pytest.raises(ValueError, match=r"'quant_conv.bias' goes beyond float16's 65504; use bf"):
        sora_jax.load(folder, dtype="float16")


def test_one_network_of_a_pipeline_is_no_model(folder):
    with pytest.raises(ValueError, match="is one network and no model; give the folder around it"):
        sora_jax.load(folder / "transformer")
    with pytest.raises(ValueError, match="is no folder of an open model"):
        import_open(str(folder / "scheduler"), str(folder / "out"))
    with pytest.raises(ValueError, match="is the source itself"):
        import_open(str(folder), str(folder))


def test_the_command_ends_in_one_line(folder, tmp_path):
    cut(folder)
    output = f"--output={tmp_path / 'out'}"
    command = [sys.executable, "-m", "sora_jax.weights", "import", f"--source={folder}", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("error: ") and "truncated or damaged" in last
