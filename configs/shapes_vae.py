"""The small VAE that ships: moving shapes, 4x8x8 compression to 8 channels.

    python train.py --config=configs/shapes_vae.py --workdir=runs/shapes_vae_short
    python train.py --config=configs/shapes_vae.py:long --workdir=runs/shapes_vae_long \
        --config.init=runs/shapes_vae_short/model
    python train.py --config=configs/shapes_vae.py:decoder --workdir=runs/shapes_vae \
        --config.init=runs/shapes_vae_long/model

The first sees images and clips of 9 frames, half an hour on two cores. The second goes on with 17
and 33: the latents of frames past the longest clip that the network saw drift. The third trains the
decoder alone, against flicker; latents stay what they were, and so does what was trained on them.

Against a patch discriminator, from a VAE that reconstructs already; a run cannot take one on or
lay it off half-way, so this is another run:

    python train.py --config=configs/shapes_vae.py:long --workdir=runs/shapes_vae_adversarial \
        --config.init=runs/shapes_vae/model --config.loss.adversarial=0.05
"""

from ml_collections import ConfigDict

STAGES = ("short", "long", "decoder")


def get_config(stage="short"):
    if stage not in STAGES:
        raise ValueError(f"shapes_vae.py has no stage {stage!r}; use one of {STAGES}")
    config = ConfigDict()
    config.task = "vae"
    config.seed = 0
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})

    config.data = ConfigDict()
    config.data.folder = ""  # the rendered world
    config.data.clips = 1_000_000
    config.data.fps = 8.0
    config.data.buckets = ((1, 64, 64), (9, 64, 64), (9, 64, 96))
    config.data.bucket_weights = (0.78, 0.18, 0.04)
    if stage != "short":
        config.data.buckets = ((1, 64, 64), (17, 64, 64), (17, 64, 96), (17, 96, 64), (33, 64, 64))
        config.data.bucket_weights = (0.7, 0.11, 0.08, 0.08, 0.03)
    config.data.token_budget = 8 * 8 * 8
    if stage == "decoder":
        config.data.bucket_weights = (0.25, 0.28, 0.19, 0.19, 0.09)
        config.data.token_budget = 2 * 5 * 8 * 8
    config.data.most_clips = 0
    config.data.caption_weights = ConfigDict({"short": 0.5, "detailed": 0.5})
    config.data.caption_dropout = 0.0
    config.data.workers = 0
    config.data.held_out_batches = 24

    config.init = ""  # a model folder whose VAE to start from
    config.keep_encoder = stage == "decoder"  # latents stay as they are
    config.vae = ConfigDict()
    config.vae.encoder_width = 16
    config.vae.decoder_width = 24
    config.vae.multipliers = (1, 2, 4)
    config.vae.blocks = 1
    config.vae.temporal = (True, True)
    config.vae.latent_channels = 8
    config.vae.patch = 2

    # `change` weighs flicker; `adversarial` a discriminator that is trained along, 0 leaves it out.
    config.loss = ConfigDict({"kl": 2e-4, "gradient": 0.5, "change": 0.0, "adversarial": 0.0})
    if stage == "decoder":
        config.loss.change = 2.0
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3 if stage == "short" else 5e-4
    config.optimizer.muon_learning_rate = 0.01 if stage == "short" else 0.005
    config.optimizer.warmup_steps = 100
    config.optimizer.decay_share = 0.4 if stage == "short" else 0.6
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.99
    config.optimizer.clip = 1.0

    config.loop = ConfigDict()
    config.loop.steps = {"short": 3600, "long": 2000, "decoder": 10_000}[stage]
    config.loop.ema_decay = 0.995
    config.loop.log_every = 20
    config.loop.evaluate_every = 250
    config.loop.checkpoint_every = 250
    config.loop.save_every = 500
    config.loop.accumulate = 1  # parts of a batch, one after the other
    return config
