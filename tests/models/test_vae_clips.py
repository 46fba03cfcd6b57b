"""Long clips and large frames through the VAE: the same function, in the memory of a part."""

import functools

import jax
import numpy as np
import pytest
from tiny_model import draw_params

from sora_jax.evaluation.examples import render_examples
from sora_jax.loading import PRETRAINED
from sora_jax.models import vae_clips
from sora_jax.models.pixels import to_uint8
from sora_jax.models.vae import VAE, VAEConfig, denormalise, encode_frames, init_vae
from sora_jax.models.vae_clips import decode_clip, decode_piece, encode_clip
from sora_jax.weights.parts import load_vae

CONFIG = VAEConfig(2, 2, (1, 2), 1, (True,), 3, patch=2)
PARAMS = draw_params(init_vae, CONFIG)
MEAN, STD = np.float32([0.1, -0.2, 0.3]), np.float32([0.5, 1.2, 0.8])


def compiled(function, config=CONFIG):
    """Compiled anew, so that it sees the limits that a test sets."""
    return jax.jit(functools.partial(function, config))


def draw_frames(frames, height, width):
    shape = (2, frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def draw_latents(frames, height, width):
    shape = (2, *CONFIG.latent_shape(frames, height, width))
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_encoding_a_long_clip_gives_what_encoding_it_whole_gives(monkeypatch):
    frames = draw_frames(9, 8, 12)
    whole = compiled(encode_frames)(PARAMS, frames, MEAN, STD)
    np.testing.assert_array_equal(compiled(encode_clip)(PARAMS, frames, MEAN, STD), whole)
    monkeypatch.setattr(vae_clips, "WHOLE_CLIP", 1)
    streamed = compiled(encode_clip)(PARAMS, frames, MEAN, STD)
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


def test_decoding_a_long_clip_gives_what_decoding_it_whole_gives():
    z = draw_latents(9, 8, 12)
    decode = functools.partial(VAE(CONFIG).apply, method="decode")
    frames, _ = jax.jit(decode)({"params": PARAMS}, z)
    streamed = np.asarray(compiled(decode_clip)(PARAMS, z)).astype(int)
    assert streamed.std() > 10
    assert np.abs(streamed - to_uint8(frames)).max() <= 1
    assert np.mean(streamed != to_uint8(frames)) < 1e-3


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_memory_does_not_grow_with_the_duration(monkeypatch, kind):
    monkeypatch.setattr(vae_clips, "WHOLE_CLIP", 1)

    def bytes_of(frames):
        if kind == "encode":
            run, arrays = compiled(encode_clip), (draw_frames(frames, 8, 12), MEAN, STD)
        else:
            run, arrays = compiled(decode_clip), (draw_latents(frames, 8, 12),)
        return run.lower(PARAMS, *arrays).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(101) < bytes_of(11) + 5_000


def test_one_tile_that_covers_all_changes_nothing(monkeypatch):
    frames, z = draw_frames(3, 16, 12), draw_latents(3, 16, 12)
    monkeypatch.setattr(vae_clips, "WHOLE_CLIP", 1)
    encoded = compiled(encode_clip)(PARAMS, frames, MEAN, STD)
    decoded = compiled(decode_clip)(PARAMS, z)
    monkeypatch.setattr(vae_clips, "WHOLE_FRAME", 1)
    np.testing.assert_array_equal(compiled(encode_clip)(PARAMS, frames, MEAN, STD), encoded)
    np.testing.assert_array_equal(compiled(decode_clip)(PARAMS, z), decoded)


def test_tiles_piece_by_piece_are_those_of_the_whole_clip(monkeypatch):
    monkeypatch.setattr(vae_clips, "WHOLE_FRAME", 1)
    monkeypatch.setattr(vae_clips, "TILE", 16)
    monkeypatch.setattr(vae_clips, "OVERLAP", 4)
    z, run = draw_latents(7, 24, 20), compiled(decode_piece)
    first, carry = run(PARAMS, z[:, :2])
    second, _ = run(PARAMS, z[:, 2:], carry)
    pieces = np.concatenate([first, second], axis=1).astype(int)
    assert np.abs(pieces - np.asarray(compiled(decode_clip)(PARAMS, z))).max() <= 1


def test_tiles_of_the_shipped_vae_are_close_to_the_whole(monkeypatch):
    """Two tiles of 64 x 64 that overlap by half, of a rendered clip of 64 x 96."""
    vae = load_vae(PRETRAINED)
    clip = render_examples(2, 9)[1].frames[None]
    statistics = vae.mean, vae.std

    def encode():
        return compiled(encode_clip, vae.config)(vae.params, clip, *statistics)

    def decode():
        z = denormalise(latents, *statistics)
        return np.float64(compiled(decode_clip, vae.config)(vae.params, z))

    latents = encode()
    frames = decode()
    for name, value in (("WHOLE_CLIP", 1), ("WHOLE_FRAME", 1), ("TILE", 64), ("OVERLAP", 32)):
        monkeypatch.setattr(vae_clips, name, value)
    assert 0 < np.mean((decode() - frames) ** 2) < 255**2 * 10**-5  # 50 dB
    assert 0 < np.sqrt(np.mean((encode() - latents) ** 2)) < 0.05
