"""A model folder is loaded as it says it is, or refused by what is wrong with it."""

import dataclasses
import json
import shutil

import pytest

import sora_jax
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.loading import PRETRAINED
from sora_jax.models.dit import init_dit
from sora_jax.weights.model_folder import Part, save_model
from tests.tiny_model import (
    DIT_CONFIG,
    SETTINGS,
    VAE_CONFIG,
    draw_params,
)


def test_a_folder_says_what_the_model_is(model):
    assert model.fps == 8.0
    assert (model.vae_config, model.dit_config) == (VAE_CONFIG, DIT_CONFIG)
    assert model.settings == ModelSettings(**SETTINGS)


def edit(change):
    """Damage to the description of a model folder."""

    def apply(path):
        description = json.loads((path / "model.json").read_text())
        change(description)
        (path / "model.json").write_text(json.dumps(description))

    return apply


def other_dit(**sizes):
    """The transformer of another model, whole by itself."""

    def apply(path):
        config = dataclasses.replace(DIT_CONFIG, **sizes)
        file = "dit.safetensors"
        part = Part(dataclasses.asdict(config), draw_params(init_dit, config))
        save_model(path / "other", {"dit": part}, {})
        (path / "other" / file).replace(path / file)
        edit(lambda d: d["parts"]["dit"].update(sizes))(path)

    return apply


def truncate(path):
    file = path / "dit.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "holds no model.json; give a model folder"),
        (lambda path: (path / "model.json").unlink(), "holds no model.json"),
        (lambda path: (path / "model.json").write_text("{"), "model.json is not JSON"),
        (lambda path: (path / "model.json").write_text("[]"), "model.json holds no JSON object"),
        (lambda path: (path / "model.json").write_text("[" * 10**5), "model.json is not JSON"),
        (edit(lambda d: d.update(fps=10**400)), "not JSON .a whole number of 401 digits"),
        (edit(lambda d: d.update(level_gird=1000)), "'level_gird' is no setting of a model, which"),
        (edit(lambda d: d["parts"].update(audio={})), "has the part 'audio', which is none of"),
        (edit(lambda d: d.update(format="other")), "is not a 'sora_jax model 1' file"),
        (edit(lambda d: d.update(parts=["vae"])), "model.json: parts must be settings by name"),
        (edit(lambda d: d["parts"].update(vae=3)), "model.json: parts must be settings by name"),
        (edit(lambda d: d["parts"].pop("dit")), "has no 'dit' part, only .'text', 'vae'"),
        (edit(lambda d: d.pop("shift")), "model.json lacks 'shift'"),
        (edit(lambda d: d.update(solver="dpm")), "model.json: solver 'dpm' is unknown"),
        (edit(lambda d: d.update(size=[96])), "model.json: size .96. must be .width, height."),
        (edit(lambda d: d.update(fps="8")), "model.json: .*; write the model folder again"),
        *(
            (edit(lambda d, wrong=wrong: d.update(wrong)), f"model.json: .*{message}")
            for wrong, message in [
                ({"level_grid": 999.5}, "level_grid 999.5 must be a whole number .* such as 1000"),
                ({"level_grid": True}, "level_grid True must be a whole number of at least 1"),
                ({"frames": 6}, "size .* and frames 6: 6 frames .* 1 . 4k .* nearest are 5 and 9"),
                ({"frames": 5.0}, "frames 5.0 must be a whole number"),
                ({"size": [30, 16]}, r"size \(30, 16\) and frames 5: width 30 .* multiple of 8"),
                ({"size": ["32", 16]}, "size .* must be .width, height."),
                ({"size": 32}, "size 32 must be .width, height."),
                ({"fps": True}, "fps True must be a positive number, such as 16.0"),
                ({"text_length": 8.5}, "text_length 8.5 must be a whole number"),
                ({"shift": "2"}, "shift '2' must be a positive number, such as 5.0"),
                ({"shift_tokens": 0}, "shift_tokens 0 must be a whole number"),
                ({"latent_limit": float("nan")}, "latent_limit nan must be a positive number"),
                ({"steps": 2.5}, "steps 2.5 must be a whole number of at least 1, such as 20"),
                ({"solver": ["euler"]}, "solver .'euler'. is unknown"),
                ({"guidance": "3"}, "'text': '3'.* are no guidance"),
                ({"guidance": {"scale": 3}}, "guidance has no 'scale'; it has .'text', 'given'"),
                ({"guidance": {"interval": "01"}}, "the interval '01' are no guidance"),
                ({"negative": "circle " * 20}, "negative: .* prompt takes 21 tokens"),
            ]
        ),
        (edit(lambda d: d["parts"]["vae"].update(latent_mean=4 * [1e99])), "latent_mean is .1e.99"),
        (edit(lambda d: d["parts"]["vae"].update(latent_std=4 * [1e-99])), "1e-99 must be positi"),
        (edit(lambda d: d["parts"]["vae"].update(blocks=1.0)), "VAEConfig.blocks is 1.0"),
        (edit(lambda d: d["parts"]["vae"].update(temporal=[1, 1])), r"VAEConfig.temporal is \(1,"),
        (edit(lambda d: d["parts"]["vae"].update(shortcuts=0)), "VAEConfig.shortcuts is 0; make"),
        (edit(lambda d: d["parts"]["vae"].pop("latent_std")), "lacks 'latent_std'"),
        (edit(lambda d: d["parts"]["vae"].update(latent_mean=4 * [None])), "latent_mean is .None,"),
        (edit(lambda d: d["parts"]["vae"].update(latent_std=4 * [0.0])), "0.0 must be positive"),
        (edit(lambda d: d["parts"]["dit"].update(depth=2)), "DiTConfig has no field 'depth'"),
        (edit(lambda d: d["parts"]["text"].pop("width")), "TextConfig.*'width'"),
        (edit(lambda d: d["parts"]["dit"].update(width=64)), "has shape .* asks for"),
        (edit(lambda d: d["parts"]["vae"].update(blocks=2)), "lacks '.*block_.*another config"),
        (edit(lambda d: d["parts"]["dit"].update(mlp_width=32)), "mlp.* has shape"),
        (lambda path: (path / "text.safetensors").unlink(), "text.safetensors is missing"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer at"),
        (truncate, "dit.safetensors is truncated or damaged"),
        (
            edit(lambda d: d["parts"]["vae"].update(latent_mean=[0.0])),
            "latent_mean is 1, and the parts beside it need",
        ),
        (
            lambda path: shutil.copy(PRETRAINED / "tokenizer.json", path),
            "model: its tokenizer has .* ids and its text encoder only .*; take both from one",
        ),
        (
            edit(lambda d: d["parts"]["vae"].update(latent_std=5 * [1.0])),
            "model: the length of latent_std is 5, and .* need 4; .* take all of them from one",
        ),
        (other_dit(latent_channels=8), "latent_channels of the dit is 8, and .* need 4"),
        (other_dit(text_width=24), "text_width of the dit is 24, and .* need 16"),
        (edit(lambda d: d["parts"]["dit"].update(patch=[2, 2])), "model.json: DiTConfig.patch is"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, damage, message):
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sora_jax.load(path)


def test_the_folder_of_a_run_holds_its_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    assert sora_jax.load(tmp_path).settings == ModelSettings(**SETTINGS)


def test_every_file_of_a_model_has_the_rights_of_any_other_file(folder, tmp_path):
    (tmp_path / "file").touch()
    rights = (tmp_path / "file").stat().st_mode
    assert {file.stat().st_mode for file in folder.iterdir()} == {rights}
