"""A small text-to-video transformer on a folder of one's own clips, in their own shapes.

    python -m sora_jax.data.precompute --config=configs/clips_dit.py --output=data/clips_latents \
        --passes=8
    python train.py --config=configs/clips_dit.py --workdir=runs/clips_dit \
        --config.data.latents=data/clips_latents

after `configs/clips_vae.py`. A few hundred clips are learnt by heart; that is the point of a first
run, and a real one has a million.
"""

from ml_collections import ConfigDict

from configs import shapes_dit
from sora_jax.buckets import make_buckets


def get_config():
    config = shapes_dit.get_config()
    config.data.folder = "data/clips"
    config.data.fps = 12.0
    buckets = make_buckets(
        area=112 * 64, aspect_ratios=(16 / 9, 4 / 3, 1.0, 9 / 16), frames=(1, 17), multiple=16
    )
    config.data.buckets = tuple((b.frames, b.height, b.width) for b in buckets)
    config.data.bucket_weights = ()
    config.data.token_budget = 8 * 140  # 8 wide clips
    config.data.most_clips = 8
    config.data.caption_weights = {"short": 0.2, "detailed": 0.8}
    config.data.held_out_batches = 4
    config.vae = "runs/clips_vae/model"
    config.patterns = ConfigDict(shapes_dit.PROMPTING)
    config.tokenizer.vocabulary = 1024
    config.tokenizer.length = 96
    config.dit.width = 192
    config.dit.heads = 6
    config.dit.mlp_width = 768
    config.optimizer.learning_rate = 5e-4
    config.optimizer.muon_learning_rate = 0.01
    config.optimizer.warmup_steps = 500
    config.optimizer.decay_share = 0.4
    config.sampling.guidance = ConfigDict({"text": 2.0, "given": 2.0})
    config.sampling.steps = 20
    config.sampling.solver = "euler"
    config.sampling.size = (112, 64)
    config.sampling.prompts = (
        "a plump purple bird hops on a branch",
        "a slow tilt down onto a sunlit meadow",
        "people walk across a plaza",
        "a car drives along a city street",
    )
    config.loop.steps = 3600
    return config
