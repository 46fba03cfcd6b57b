"""Plans of sampling are of the programs and parameters that sampling has."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax.buckets import Bucket
from sora_jax.models import conv
from sora_jax.models.text import flops
from sora_jax.models.vae_config import VAEConfig
from sora_jax.pod.checks import bytes_a_chip
from sora_jax.pod.programs import decode_work, sample_work, text_work, vae_work
from sora_jax.pod.sizes import Sizes
from sora_jax.sharding import make_mesh
from tests.tiny_dit import get_config
from tests.tiny_model import FRAMES, SIZE, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_plan_holds_what_sampling_holds(folder, dtype):
    model, mesh = sora_jax.load(folder, dtype=dtype), make_mesh({}, jax.devices()[:1])
    networks = (model.vae_config, model.dit_config, model.text_config)
    sizes = Sizes(*networks, False, jnp.float32, Bucket(FRAMES, *SIZE[::-1]), 8, dtype)

    def kind(x):
        return x.shape, np.dtype(x.dtype)

    for part, work in (("dit", sample_work), ("text", text_work)):
        plan = work(get_config(), sizes, mesh, 1)
        held = model.params[part]
        assert jax.tree.map(kind, plan.kinds["parameters"]) == jax.tree.map(kind, held)
        size = sum(x.nbytes for x in jax.tree.leaves(held))
        assert bytes_a_chip(plan.kinds["parameters"]) == size
        made = jax.eval_shape(plan.step, *plan.arguments)
        shape = (1, *sizes.latents) if part == "dit" else (2, 8, sizes.text.width)
        assert made.shape == shape and plan.flops > 0
    plan = decode_work(get_config(), sizes, mesh, 1)
    made = jax.eval_shape(plan.step, *plan.arguments)
    assert kind(made) == ((1, FRAMES, *SIZE[::-1], 3), np.uint8) and plan.flops > 0


def test_the_operations_of_the_text_encoder(folder):
    """Its products alone, counted on matrices of one layer that are multiplied one by one."""
    cfg = sora_jax.load(folder).text_config
    length, inner = 8, cfg.heads * cfg.head_width
    products = [
        *3 * [(length, cfg.width, inner)],
        (length, inner, cfg.width),
        *2 * [(length, cfg.width, cfg.mlp_width)],
        (length, cfg.mlp_width, cfg.width),
        *cfg.heads * [(length, cfg.head_width, length)],
        *cfg.heads * [(length, length, cfg.head_width)],
    ]
    assert flops(cfg, length) == cfg.layers * sum(2 * a * b * c for a, b, c in products)


def test_large_frames_count_as_often_as_there_are(monkeypatch):
    """Beside the form of convolutions that has no loop over frames on any platform."""
    vae = VAEConfig(4, 4, (1, 1), 1, (True,), 4)
    mesh = make_mesh({}, jax.devices()[:1])
    sizes = Sizes(vae, None, None, False, jnp.float32, Bucket(5, 64, 64), 0)
    counts = []
    for large in (conv.LARGE_FRAME, sys.maxsize):
        monkeypatch.setattr(conv, "LARGE_FRAME", large)
        counts.append([w(get_config(), sizes, mesh, 1).flops for w in (vae_work, decode_work)])
    np.testing.assert_allclose(*counts, rtol=0.02)
