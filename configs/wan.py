"""Text-to-video transformers of the sizes of Wan 2.1 and 2.2, for TPU pods.

    python -m sora_jax.data.precompute --config=configs/wan.py:14b --output=data/wan
    python train.py --config=configs/wan.py:14b --workdir=gs://BUCKET/wan_14b \
        --config.data.latents=data/wan

Plans without a pod, with the figures of docs/pods.md:

    python -m sora_jax.pod --config=configs/wan.py:14b --topology=v5p:4x4x8

| model | transformer | clips |
|---|---|---|
| 1.3b | Wan 2.1's of 1.3 B parameters | 81 frames at 480p, images |
| 5b | Wan 2.2's of 5 B, on latents of 16 x 16 pixels | 121 frames at 720p, images |
| 14b | Wan 2.1's of 14 B | 81 frames at 480p and 720p, images |
| 14b_v6e | the same, for 16 x 16 chips of 32 GB | the same |
| 14b_1080p | the same, from the model that `14b` trains | 81 frames at 1080p, images |
| minute | that of 5 B | one minute of 1080p, 30 frames a second, in one sequence |
| images | that of 1.3 B | images of up to 2048 x 2048 |

The VAE and the text encoder are those of a model folder and stay as they are; latents and text
features are computed before.
"""

from ml_collections import ConfigDict

from configs import shapes_dit
from sora_jax.buckets import ASPECT_RATIOS, make_buckets

SIZES = {
    "1.3b": {"width": 1536, "layers": 30, "heads": 12, "mlp_width": 8960},
    "5b": {"width": 3072, "layers": 30, "heads": 24, "mlp_width": 14336},
    "14b": {"width": 5120, "layers": 40, "heads": 40, "mlp_width": 13824},
}
TRANSFORMER = {
    **{"1.3b": "1.3b", "5b": "5b", "14b": "14b", "14b_v6e": "14b", "14b_1080p": "14b"},
    **{"minute": "5b", "images": "1.3b"},
}
PIXELS = {
    **{"480p": 832 * 480, "704p": 1280 * 704, "720p": 1280 * 720},
    **{"1080p": 1920 * 1088, "2048": 2048 * 2048},
}


def make_shapes(name):
    """Buckets of a model: images, and clips of its length, in all aspect ratios."""
    if name == "minute":
        return ((1801, 1088, 1920),)
    frames, areas, multiple = {
        "1.3b": ((1, 81), ("480p",), 16),
        "5b": ((1, 121), ("704p",), 32),
        "14b": ((1, 81), ("480p", "720p"), 16),
        "14b_v6e": ((1, 81), ("480p", "720p"), 16),
        "14b_1080p": ((1, 81), ("1080p",), 16),
        "images": ((1,), ("720p", "1080p", "2048"), 16),
    }[name]
    buckets = [
        bucket
        for area in areas
        for bucket in make_buckets(
            area=PIXELS[area], aspect_ratios=ASPECT_RATIOS, frames=frames, multiple=multiple
        )
    ]
    return tuple((b.frames, b.height, b.width) for b in buckets)


def get_config(model="1.3b"):
    if model not in TRANSFORMER:
        raise ValueError(f"wan.py has no model {model!r}; use one of {sorted(TRANSFORMER)}")
    size = TRANSFORMER[model]
    config = shapes_dit.get_config()
    config.dtype = "bfloat16"
    config.remat = "offload" if size == "14b" else "hidden"
    config.mesh = ConfigDict({"data": -1, "fsdp": -1, "context": 4, "tensor": 1})
    if model == "14b_v6e":
        config.remat = "hidden"
        config.mesh.update({"data": 1, "context": 16})
    if model == "14b_1080p":
        config.mesh.context = 8
    if model == "minute":
        config.mesh.update({"data": 1, "fsdp": 1, "context": -1})

    config.data.folder = "data/clips"
    config.data.fps = 30.0 if model == "minute" else 24.0 if size == "5b" else 16.0
    config.data.buckets = make_shapes(model)
    config.data.bucket_weights = ()
    config.data.token_budget = 1  # one clip for each part of the mesh that has its own
    config.data.most_clips = 0
    config.data.caption_weights = ConfigDict({"short": 0.1, "detailed": 0.9})
    config.data.held_out_batches = 4

    config.vae = "models/wan2.2" if size == "5b" else "models/wan2.1"
    config.text_encoder = config.vae
    config.tokenizer.length = 512

    config.dit.update(SIZES[size])
    config.noise = ConfigDict({"mean": 0.0, "std": 1.0, "shift": 5.0, "shift_tokens": 32760})
    config.noise.floor = 0.05
    config.patterns = ConfigDict(shapes_dit.PROMPTING)

    config.optimizer.learning_rate = 1e-4
    config.optimizer.muon_learning_rate = 0.0  # AdamW on all
    config.optimizer.warmup_steps = 1000
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.95

    config.sampling.steps = 50
    config.sampling.guidance = ConfigDict({"text": 5.0, "given": 2.0})
    config.sampling.solver = "deis"
    frames, width, height = max((f, w, h) for f, h, w in config.data.buckets)
    config.sampling.size = (width, height)
    config.sampling.frames = frames
    config.sampling.prompts = ()  # samples are made on one device, which has no room

    config.loop.steps = 100_000
    config.loop.ema_decay = 0.9999
    config.loop.evaluate_every = 2000
    config.loop.save_every = 10_000
    return config
