"""Configs that cannot work are refused before anything is compiled."""

import dataclasses
import pathlib

import jax
import numpy as np
import optax
import pytest
import tiny_dit
from flax import linen as nn
from ml_collections import ConfigDict

from configs import clips_dit, clips_vae, shapes_dit, shapes_vae, wan
from sora_jax.buckets import Bucket
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.remat import REMAT
from sora_jax.models.vae import init_vae
from sora_jax.pod.sizes import read_sizes
from sora_jax.sharding import MESH_AXES, make_mesh
from sora_jax.training import captions, clips, setup
from sora_jax.training.adversarial_task import AdversarialTask
from sora_jax.training.loop import LoopConfig
from sora_jax.training.optimizer import make_optimizer
from sora_jax.training.placement import BatchSplit
from sora_jax.training.state import make_state
from sora_jax.training.vae_task import VAETask
from sora_jax.weights.model_folder import load_description
from sora_jax.weights.parts import load_dit, load_text, load_vae
from sora_jax.weights.settings import from_settings

PRETRAINED = str(pathlib.Path(setup.__file__).parents[1] / "pretrained")


def vae_config(**changes) -> ConfigDict:
    """The config of the shipped VAE, tiny, with changes by dotted key."""
    config = shapes_vae.get_config()
    config.data.clips = 50
    config.data.buckets = ((1, 16, 16), (5, 16, 16))
    config.data.bucket_weights = (0.5, 0.5)
    config.data.held_out_batches = 3
    config.update_from_flattened_dict(changes)
    return config


def test_held_out_batches_are_of_clips_that_training_never_draws():
    task, data = setup.make_vae_task(vae_config(), pathlib.Path(), BatchSplit())
    data.loader.close()
    assert len(data.held_out) == 3 and data.fps == 8.0
    assert task.config.temporal_stride == 4
    trained = Shapes(50, [Bucket(1, 16, 16), Bucket(5, 16, 16)], (0.5, 0.5))
    clips = [trained.read(i, Bucket(1, 16, 16), np.random.default_rng(0)) for i in range(50)]
    frames = {clip["frames"].tobytes() for clip in clips}
    images = [batch["frames"] for batch in data.held_out if batch["frames"].shape[1] == 1]
    assert images and not frames & {image.tobytes() for batch in images for image in batch}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.buckets": ((1, 20, 16),)}, "height 20 .* nearest are 16 and 24"),
        ({"data.buckets": (1, 64, 64)}, "config.data.buckets has 1, which is no bucket"),
        ({"data.buckets": ((6, 16, 16),)}, "6 frames .* nearest are 5 and 9"),
        ({"data.folder": "nowhere"}, "no dataset at nowhere"),
        ({"data.held_out_batches": 0}, "held_out_batches=0.*at least 1"),
        ({"data.bucket_weights": (1.0,)}, "do not fit 2 buckets"),
        ({"data.token_budget": 0}, "token_budget=0"),
        ({"dtype": "float23"}, "config.dtype='float23' is unknown.*bfloat16"),
        ({"vae.temporal": (True,)}, "one entry fewer than multipliers"),
        ({"vae": ConfigDict({"depth": 3})}, "VAEConfig has no field 'depth'"),
        ({"init": "nowhere"}, "nowhere holds no model"),
        ({"init": PRETRAINED, "vae.blocks": 2}, "blocks 1, and config.vae.blocks is 2"),
    ],
)
def test_a_vae_that_cannot_be_trained_is_refused(changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        setup.make_vae_task(vae_config(**changes), pathlib.Path(), BatchSplit())


def begun(task):
    """What a run of the task begins with."""
    tx, key = optax.sgd(0.1), jax.random.key(0)
    return jax.device_get(make_state(task.init, tx, key, make_mesh(), task.start)[0].params)


def test_a_vae_starts_from_that_of_a_model_folder():
    task, data = setup.make_vae_task(vae_config(init=PRETRAINED), pathlib.Path(), BatchSplit())
    data.loader.close()
    np.testing.assert_equal(begun(task), load_vae(PRETRAINED).params)
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    drawn = jax.eval_shape(lambda key: init_vae(task.config, key), jax.random.key(0))
    assert nn.get_partition_spec(boxed) == nn.get_partition_spec(drawn)


@pytest.mark.parametrize(("weight", "kind"), [(0.0, VAETask), (0.1, AdversarialTask)])
def test_a_discriminator_is_trained_only_where_its_loss_has_a_weight(weight, kind):
    task, data = setup.make_vae_task(
        vae_config(**{"loss.adversarial": weight}), pathlib.Path(), BatchSplit()
    )
    data.loader.close()
    assert type(task) is kind


def test_buckets_may_be_lists():
    buckets = clips.read_buckets(ConfigDict({"buckets": [[1, 64, 96], (5, 64, 64)]}))
    assert buckets == [Bucket(1, 64, 96), Bucket(5, 64, 64)]


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ((), r"config.data.buckets=\(\) must be a tuple of buckets"),
        (64, "config.data.buckets=64 must be a tuple"),
        ((1, 64, 64), "has 1, which is no bucket: .* three whole numbers"),
        (((1, 64, 64), (1,)), r"has \(1,\), which is no bucket"),
        (((0, 64, 64),), r"has \(0, 64, 64\), which"),
        (((1, 64.0, 64),), r"has \(1, 64.0, 64\), which"),
    ],
)
def test_what_is_no_bucket_is_refused(buckets, message):
    with pytest.raises(ValueError, match=message):
        clips.read_buckets(ConfigDict({"buckets": buckets}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.buckets": ((1,),)}, r"config.data.buckets has \(1,\)"),
        ({"dit.patch": (2, 2, 2)}, r"config.dit.patch=\(2, 2, 2\) .*make its first number 1"),
        ({"dit.patch": (1, 0, 2)}, r"DiTConfig.patch is \(1, 0, 2\)"),
        ({"dit.heads": 0}, "DiTConfig.heads is 0"),
        ({"noise.shift_tokens": 0}, "config.noise.shift_tokens=0"),
        ({"sampling.solver": "dpm"}, "config.sampling: solver 'dpm' is unknown; use one of"),
        ({"sampling.size": (32, 20)}, "config.sampling: .*20"),
        ({"sampling.frames": 6}, "config.sampling: .*6 frames"),
        ({"sampling.prompts": (50 * "circle ",)}, "config.sampling: the prompt takes .* reads 16"),
        (
            {"sampling.negative": 50 * "circle "},
            "config.sampling: negative: the prompt takes .* reads 16",
        ),
        ({"sampling": ConfigDict({"prompts": ()})}, "config.sampling: ModelSettings needs"),
    ],
)
def test_a_transformer_that_cannot_be_trained_is_refused(tmp_path, changes, message):
    config = tiny_dit.get_config()
    config.data.folder, config.data.clips = "", 4
    config.vae, config.text_encoder = PRETRAINED, PRETRAINED
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        setup.make_dit_task(config, tmp_path, BatchSplit())


def shipped_dit(**changes):
    """A run that starts from the shipped model, of the sizes that model has."""
    description = load_description(PRETRAINED)
    config = tiny_dit.get_config()
    config.data.folder, config.data.clips = "", 4
    config.vae, config.init = PRETRAINED, PRETRAINED
    for part in ("dit", "text"):
        found = description["parts"][part]
        config[part] = ConfigDict({k: found[k] for k in config[part]})
    config.dit.patch = tuple(config.dit.patch)
    config.tokenizer.length = description["text_length"]
    config.update_from_flattened_dict(changes)
    return config


def test_a_transformer_starts_from_that_of_a_model_folder(tmp_path):
    task, data = setup.make_dit_task(shipped_dit(), tmp_path, BatchSplit())
    data.loader.close()
    params = begun(task)
    shipped = {"dit": load_dit(PRETRAINED)[1], "text": load_text(PRETRAINED)[1]}
    np.testing.assert_equal(params, shipped)
    text = "a red circle moves right"
    words = Tokenizer.from_file(f"{PRETRAINED}/tokenizer.json").encode(text, 32)
    np.testing.assert_array_equal(task.tokenizer.encode(text, 32), words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dit.layers": 2}, "holds a transformer with layers .*, and config.dit.layers is 2"),
        ({"text.heads": 2, "text.head_width": 64}, "text encoder with heads .*config.text.heads"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_a_start_of_other_sizes_is_refused(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        setup.make_dit_task(shipped_dit(**changes), tmp_path, BatchSplit())


def test_a_transformer_without_its_vae_is_refused(tmp_path):
    config = shapes_dit.get_config()
    config.vae = "nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere holds no model"):
        setup.make_dit_task(config, tmp_path, BatchSplit())


def test_a_tokenizer_knows_the_words_of_all_buckets():
    """Records of latents lie bucket by bucket: their first are all images, which do not move."""

    class BucketByBucket:
        def __len__(self):
            return 1000

        def captions(self, index):
            return {"short": "a still image" if index < 900 else "something moves leftwards"}

    config = shapes_dit.get_config()
    config.tokenizer.captions = 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "make_source", lambda *args, **kwargs: BucketByBucket())
        tokenizer = captions.make_tokenizer(config)
    assert tokenizer.count("something moves leftwards") <= 4


def test_a_loop_says_what_it_lacks_or_does_not_know():
    config = vae_config()
    assert setup.make_loop_config(config).steps == config.loop.steps
    with config.unlocked():
        config.loop.stepz = 3
    with pytest.raises(ValueError, match="LoopConfig has no field 'stepz'"):
        setup.make_loop_config(config)
    with pytest.raises(ValueError, match="LoopConfig needs 'checkpoint_every'"):
        from_settings(LoopConfig, {"steps": 1})


@pytest.mark.parametrize(
    "name", ["log_every", "evaluate_every", "checkpoint_every", "save_every", "accumulate"]
)
def test_an_interval_of_no_steps_is_refused(name):
    with pytest.raises(ValueError, match=rf"config.loop.{name}=0 must be at least 1"):
        setup.make_loop_config(vae_config(**{f"loop.{name}": 0}))


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"config.loop.steps=-1 must not be negative"):
        setup.make_loop_config(vae_config(**{"loop.steps": -1}))


def test_a_work_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--workdir=.*cannot be made.*choose another"):
        setup.workdir_path(str(tmp_path / "file" / "run"))


@pytest.mark.parametrize("model", wan.TRANSFORMER)
def test_configs_for_pods_have_the_keys_that_training_takes(model):
    config, reference = wan.get_config(model), shapes_dit.get_config()
    assert set(config) == set(reference)
    assert {key: set(config[key]) for key in ("data", "dit", "optimizer", "loop")} == {
        key: set(reference[key]) for key in ("data", "dit", "optimizer", "loop")
    }
    make_optimizer(steps=config.loop.steps, **config.optimizer)
    count = jax.device_count()
    mesh = {**config.mesh, "context": min(count, config.mesh.context)}
    assert config.remat in REMAT and make_mesh(mesh).size == count
    sizes = read_sizes(config, None)  # of the largest bucket
    assert sizes.latents[1] % 2 == 0 and sizes.words == 512


@pytest.mark.parametrize("module", [shapes_vae, shapes_dit, clips_vae, clips_dit])
def test_configs_have_the_keys_that_training_takes(module):
    config = module.get_config()
    assert dataclasses.asdict(setup.make_loop_config(config))["steps"] > 0
    make_optimizer(steps=config.loop.steps, **config.optimizer)
    assert set(config.mesh) == set(MESH_AXES)
    assert make_mesh(dict(config.mesh)).shape["fsdp"] == jax.device_count()
    assert len(config.data.bucket_weights) in (0, len(config.data.buckets))
