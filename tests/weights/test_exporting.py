"""A model as a folder of diffusers: exact both ways, as written there, and faults are named."""

import json
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import sora_jax
from sora_jax.models.dit_config import DiTConfig
from sora_jax.weights import exporting
from sora_jax.weights.__main__ import export_pipeline, import_open
from sora_jax.weights.entries import list_entries
from sora_jax.weights.exporting import open_folder, write_pipeline
from sora_jax.weights.wan import open_model
from tests.tiny_folders import save_vae
from tests.tiny_model import PROMPT, write_model
from tests.weights.open_folders import (
    PIPELINE,
    add_second,
    copy_experts,
    copy_image_pipeline,
    copy_ti2v,
    edit_json,
    write_sparse,
)
from tests.weights.test_open_faults import REPOSITORY


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A model folder of ours that predicts clean latents."""
    return write_model(tmp_path_factory.mktemp("clean") / "model", negative="a blue square")


@pytest.fixture
def folder(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "model")


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_out_and_in_and_out_is_exact(clean, tmp_path):
    out, back, again = (tmp_path / name for name in ("out", "back", "again"))
    export_pipeline(str(clean), str(out))
    import_open(str(out), str(back))
    export_pipeline(str(back), str(again))
    assert contents(again) == contents(out)
    for part in ("vae", "dit", "text"):
        ours, theirs = (load_file(f / f"{part}.safetensors") for f in (clean, back))
        assert ours.keys() == theirs.keys()
        assert all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)
    ours, theirs = (json.loads((f / "model.json").read_text()) for f in (clean, back))
    assert ours == theirs and ours["parts"]["dit"]["prediction"] == "clean"
    # The same video from the pipeline's folder itself.
    one, other = (sora_jax.load(f).sample(PROMPT, seed=3) for f in (clean, out))
    np.testing.assert_array_equal(one, other)


def test_in_and_out_and_in_is_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_SHARD", 20_000)
    first, out, second = (tmp_path / name for name in ("first", "out", "second"))
    import_open(str(PIPELINE), str(first))
    export_pipeline(str(first), str(out))
    import_open(str(out), str(second))
    assert contents(second) == contents(first)
    assert len(list((out / "transformer").glob("*.safetensors"))) > 2
    for name in ("vae", "transformer", "text_encoder"):
        theirs, ours = ({}, {})
        for tensors, root in ((theirs, PIPELINE), (ours, out)):
            for file in (root / name).glob("*.safetensors"):
                tensors |= load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(ours[k].dtype == x.dtype for k, x in theirs.items())
        assert all(ours[k].tobytes() == x.tobytes() for k, x in theirs.items())


@pytest.mark.parametrize("kind", ["image", "ti2v", "experts", "image experts"])
def test_other_kinds_come_back_exact(tmp_path, kind):
    source, first, out, second, again = (tmp_path / str(number) for number in range(5))
    if kind.startswith("image"):
        copy_image_pipeline(source)
    if kind == "image experts":
        add_second(source, lambda tensors: None, 0.9)
    if kind in ("ti2v", "experts"):
        {"ti2v": copy_ti2v, "experts": copy_experts}[kind](source)
    import_open(str(source), str(first))
    said = export_pipeline(str(first), str(out))
    import_open(str(out), str(second))
    export_pipeline(str(second), str(again))
    assert contents(second) == contents(first) and contents(again) == contents(out)
    ours, theirs = (json.loads((f / "model_index.json").read_text()) for f in (out, source))
    for name in ("tokenizer", "image_processor"):  # classes that read the same files
        assert (ours.pop(name, None) is None) == (theirs.pop(name, None) is None)
    assert ours == theirs
    for name in ("transformer", "transformer_2", "image_encoder", "image_processor", "vae"):
        assert (out / name).is_dir() == (source / name).is_dir()
    for file in source.glob("*/*config.json"):
        if file.parent.name in ("transformer", "image_encoder", "image_processor"):
            ours, theirs = (
                json.loads(f.read_text()) for f in (out / file.relative_to(source), file)
            )
            differ = {key for key, value in ours.items() if theirs[key] != value}
            assert differ <= {"rope_max_seq_len", "dtype"}
    assert said.startswith("pipeline(IMAGE, PROMPT" if "image" in kind else "pipeline(PROMPT")
    assert ("guidance_scale_2=3," in said) == (kind == "experts")
    if "experts" in kind:
        edit_json(out / "model_index.json", boundary_ratio=0.5)
        with pytest.raises(
            ValueError, match=r"beside a boundary_ratio of 0\.(875|9), and model_ind"
        ):
            open_model(out)


def test_adapters_are_added_as_in_memory(clean, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {}
    for module, outputs in (("blocks.1.attn1.to_q", 32), ("blocks.0.ffn.net.0.proj", 64)):
        for part, shape in (("A", (2, 32)), ("B", (outputs, 2))):
            x = rng.normal(size=shape).astype(np.float32)
            tensors[f"transformer.{module}.lora_{part}.weight"] = x
    file, out = tmp_path / "lora.safetensors", tmp_path / "out"
    save_file(tensors, file)
    export_pipeline(str(clean), str(out), lora=str(file))
    ours, theirs, plain = (
        traverse_util.flatten_dict(model.params["dit"], sep="/")
        for model in (sora_jax.load(clean, lora=file), sora_jax.load(out), sora_jax.load(clean))
    )
    assert all(np.array_equal(ours[path], x) for path, x in theirs.items())
    changed = {path for path, x in theirs.items() if not np.array_equal(plain[path], x)}
    assert changed == {"blocks/self_attention/query/kernel", "blocks/mlp_in/kernel"}


def test_descriptions_are_those_that_diffusers_writes(tmp_path):
    import_open(str(PIPELINE), str(tmp_path / "model"))
    export_pipeline(str(tmp_path / "model"), str(tmp_path / "out"))
    otherwise = {
        "decoder_base_dim": 2,  # None for the encoder's there
        "dtype": "float32",  # of the files there
        "rope_max_seq_len": 1024,
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    for name in (
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ):
        ours, theirs = (json.loads((f / name).read_text()) for f in (tmp_path / "out", PIPELINE))
        differ = {key: value for key, value in ours.items() if theirs[key] != value}
        assert differ == {key: otherwise[key] for key in differ}
    tokenizer = "tokenizer/tokenizer.json"
    assert (tmp_path / "out" / tokenizer).read_bytes() == (PIPELINE / tokenizer).read_bytes()


def test_little_is_in_memory_at_a_time(folder, tmp_path):
    cfg = DiTConfig(128, 24, 2, 512, 4, (1, 2, 2), 16, 16)
    write_sparse(
        folder / "dit.safetensors", {e.path: e.shape for e in list_entries("dit", cfg)}, "F32"
    )
    description = json.loads((folder / "model.json").read_text())
    description["parts"]["dit"] |= {"width": 128, "layers": 24, "mlp_width": 512}
    (folder / "model.json").write_text(json.dumps(description))
    model = open_folder(folder)
    tracemalloc.start()
    write_pipeline(model, tmp_path / "out", 3.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = (tmp_path / "out/transformer/diffusion_pytorch_model.safetensors").stat().st_size
    assert written > 24_000_000 and peak < written / 10
    assert open_model(tmp_path / "out").configs["dit"] == cfg


def poison(folder):
    tensors = load_file(folder / "text.safetensors")
    tensors["blocks/gate/kernel"].flat[0] = np.nan
    save_file(tensors, folder / "text.safetensors")


def change(edit):
    def apply(folder):
        description = json.loads((folder / "model.json").read_text())
        edit(description["parts"])
        (folder / "model.json").write_text(json.dumps(description))

    return apply


def cut(folder):
    file = folder / "dit.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def another_vae(folder):
    """Of half the frames, whole by itself."""
    save_vae(folder.parent / "vae")
    shutil.copy(folder.parent / "vae" / "vae.safetensors", folder)
    other = json.loads((folder.parent / "vae" / "model.json").read_text())["parts"]["vae"]
    change(lambda parts: parts.update(vae=other))(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "dit.safetensors is truncated or damaged"),
        (poison, "'blocks/gate/kernel' holds NaN or infinity"),
        (lambda f: (f / "vae.safetensors").unlink(), "vae.safetensors is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer at"),
        (lambda f: (f / "model.json").unlink(), "holds no model.json"),
        (change(lambda p: p["dit"].update(layers=3)), "dit.safetensors: .* has shape"),
        (change(lambda p: p["vae"].pop("latent_std")), "model.json lacks 'latent_std'"),
        (
            change(lambda p: p["vae"]["latent_mean"].pop()),
            "length of latent_mean is 3, and the parts",
        ),
        (another_vae, "makes a latent frame of 2"),
        (change(lambda p: p["dit"].update(image_channels=4)), "dit.safetensors: .* has shape"),
        (change(lambda p: p.update(critic={})), "and a pipeline is made of"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(folder, tmp_path, damage, message):
    damage(folder)
    with pytest.raises((ValueError, OSError), match=message):
        export_pipeline(str(folder), str(tmp_path / "new" / "out"))
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_a_run_of_the_vae_is_no_pipeline(tmp_path):
    save_vae(tmp_path / "model")
    with pytest.raises(ValueError, match=r"has the parts \['vae'\], and a pipeline is made of"):
        export_pipeline(str(tmp_path / "model"), str(tmp_path / "out"))


def test_nothing_is_written_over(clean, tmp_path):
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(ValueError, match="exists and is not an empty folder; remove it or"):
            export_pipeline(str(clean), str(output))
    assert contents(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("scheduler/scheduler_config.json", {"flow_shift": 5.0}, "beside a flow_shift of"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "'epsilon', and must"),
        ("sora_jax.json", {"settings": [1]}, "has no settings; export the model again"),
        ("sora_jax.json", {"settings": {}}, "sora_jax.json lacks 'fps'"),
    ],
)
def test_what_was_changed_by_hand_is_not_passed_over(clean, tmp_path, name, values, message):
    export_pipeline(str(clean), str(tmp_path / "out"))
    edit_json(tmp_path / "out" / name, **values)
    with pytest.raises(ValueError, match=message):
        import_open(str(tmp_path / "out"), str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    with pytest.raises(ValueError, match=message):
        sora_jax.load(tmp_path / "out")


def test_without_our_settings_it_samples_as_wan_does(clean, tmp_path):
    export_pipeline(str(clean), str(tmp_path / "out"))
    (tmp_path / "out" / "sora_jax.json").unlink()
    settings = open_model(tmp_path / "out").settings
    assert (settings["solver"], settings["text_length"], settings["steps"]) == ("unipc", 512, 50)
    assert settings["shift"] == pytest.approx(2 * (4 / 10) ** 0.5)  # of 2 x 1 x 2 tokens


def test_the_command_says_how_diffusers_samples_it(clean, tmp_path):
    arguments = ["export", "--to=diffusers", f"--checkpoint={clean}", f"--output={tmp_path / 'o'}"]
    command = [sys.executable, "-m", "sora_jax.weights", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    for said in (
        "pipeline(PROMPT, negative_prompt='a blue square', width=32, height=16, num_frames=5, ",
        "max_sequence_length=8) makes 8 frames a second with UniPC",
        "no field for a limit of predictions, a shift by size, levels between whole thousandths, a",
    ):
        assert said in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith("error: ")
