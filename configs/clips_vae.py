"""A small VAE on a folder of one's own clips, in their own shapes.

    python -m sora_jax.data.folder --clips=CLIPS --output=data/clips
    python train.py --config=configs/clips_vae.py --workdir=runs/clips_vae \
        --config.data.folder=data/clips

Clips have 17 frames, as many as `configs/clips_dit.py` trains on: latents of frames past the
longest clip that the network saw drift. Shorter ones train faster, so that most of the run can be
of 9 frames, which a number after a colon asks for:

    python train.py --config=configs/clips_vae.py:9 --workdir=runs/clips_vae_9 \
        --config.data.folder=data/clips
    python train.py --config=configs/clips_vae.py --workdir=runs/clips_vae \
        --config.data.folder=data/clips --config.init=runs/clips_vae_9/model \
        --config.loop.steps=1000

What these two gave is in docs/clips.md; more steps and a wider network sharpen.
"""

from ml_collections import ConfigDict

from configs import shapes_vae
from sora_jax.buckets import make_buckets


def get_config(frames="17"):
    if not frames.isdecimal() or int(frames) % 4 != 1:
        raise ValueError(f"clips_vae.py takes a number of frames, 1 + 4k such as 9, not {frames!r}")
    config = shapes_vae.get_config()
    config.data.folder = "data/clips"
    config.data.fps = 12.0
    buckets = make_buckets(
        area=112 * 64,
        aspect_ratios=(16 / 9, 4 / 3, 1.0, 9 / 16),
        frames=(1, int(frames)),
        multiple=16,
    )
    config.data.buckets = tuple((b.frames, b.height, b.width) for b in buckets)
    config.data.bucket_weights = ()
    config.data.token_budget = 4 * 14 * 8
    config.data.held_out_batches = 12

    config.vae.latent_channels = 16
    config.optimizer.muon_learning_rate = 0.01
    config.loss = ConfigDict({"kl": 1e-5, "gradient": 0.5, "change": 0.0, "adversarial": 0.0})
    config.loop.steps = 5000
    return config
