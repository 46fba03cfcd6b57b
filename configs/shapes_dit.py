"""The small text-to-video transformer that ships: moving shapes, with its text encoder.

After `configs/shapes_vae.py`, images and clips of 5 frames first: they cost a fraction of a long
clip and teach colours, shapes, backgrounds and directions as well. Then 17 and 33 frames. Then the
patterns of prompting with images and videos, in clips and in windows from inside of longer ones,
some of which dissolve into another scene, and twice the size:

    python -m sora_jax.data.precompute --config=configs/shapes_dit.py:short \
        --output=data/shapes_short
    python train.py --config=configs/shapes_dit.py:short --workdir=runs/shapes_short \
        --config.data.latents=data/shapes_short
    python -m sora_jax.data.precompute --config=configs/shapes_dit.py --output=data/shapes_clips
    python train.py --config=configs/shapes_dit.py --workdir=runs/shapes_dit \
        --config.data.latents=data/shapes_clips --config.init=runs/shapes_short/model
    python -m sora_jax.data.precompute --config=configs/shapes_dit.py:prompting \
        --output=data/shapes_prompting
    python train.py --config=configs/shapes_dit.py:prompting --workdir=runs/shapes_prompting_1 \
        --config.data.latents=data/shapes_prompting --config.init=runs/shapes_dit/model
    python train.py --config=configs/shapes_dit.py:prompting --workdir=runs/shapes_prompting_2 \
        --config.data.latents=data/shapes_prompting --config.init=runs/shapes_prompting_1/model \
        --config.seed=1 --config.loop.steps=4200 --config.patterns.none=0.65 \
        --config.optimizer.decay_share=0.6
    python train.py --config=configs/shapes_dit.py:prompting --workdir=runs/shapes_prompting \
        --config.data.latents=data/shapes_prompting --config.init=runs/shapes_prompting_2/model \
        --config.seed=2 --config.loop.steps=10000 --config.patterns.none=0.8 \
        --config.optimizer.decay_share=0.7
    python -m sora_jax.weights export --checkpoint=runs/shapes_prompting \
        --output=sora_jax/pretrained

docs/shapes.md has times and scores. A run that began with long clips, in batches this small and at
the rates of the short ones, lost its text: the GELU between the text encoder and the transformer
fell to zero before the text had a clear gradient.
"""

from ml_collections import ConfigDict

STAGES = ("short", "clips", "prompting")
PROMPTING = {
    **{"none": 0.43, "first_frame": 0.1, "prefix": 0.09, "suffix": 0.09, "both_ends": 0.07},
    **{"keyframes": 0.06, "soft_hint": 0.04, "hidden": 0.04, "staircase": 0.08},
}


def get_config(stage="clips"):
    if stage not in STAGES:
        raise ValueError(f"shapes_dit.py has no stage {stage!r}; use one of {STAGES}")
    config = ConfigDict()
    config.task = "dit"
    config.seed = 0
    config.dtype = "float32"
    config.remat = "products"
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "context": 1, "tensor": 1})

    config.data = ConfigDict()
    config.data.folder = ""  # the rendered world
    config.data.latents = ""
    config.data.clips = 16_000
    config.data.fps = 8.0
    config.data.buckets = (
        (1, 64, 64),
        (1, 64, 96),
        (1, 96, 64),
        (17, 64, 64),
        (17, 64, 96),
        (17, 96, 64),
        (33, 64, 96),
    )
    config.data.bucket_weights = (0.1, 0.05, 0.05, 0.3, 0.23, 0.23, 0.04)
    config.data.token_budget = 12 * 120
    config.data.most_clips = 48
    if stage == "short":
        config.data.buckets = (*config.data.buckets[:3], (5, 64, 64), (5, 64, 96), (5, 96, 64))
        config.data.bucket_weights = (0.25, 0.12, 0.12, 0.25, 0.13, 0.13)
        config.data.clips = 40_000
        config.data.token_budget = 64 * 32
        config.data.most_clips = 64
    if stage == "prompting":
        config.data.buckets = (
            *config.data.buckets[:6],
            *((33, 64, 64), (33, 64, 96), (33, 96, 64)),
            *((1, 128, 128), (1, 128, 192), (1, 192, 128)),
            *((17, 128, 128), (17, 128, 192), (17, 192, 128)),
        )
        config.data.bucket_weights = (
            *(0.06, 0.03, 0.03, 0.14, 0.13, 0.13),
            *(0.13, 0.12, 0.12),
            *(0.02, 0.015, 0.015, 0.025, 0.018, 0.017),
        )
        config.data.dissolves = 0.3
        config.data.token_budget = 12 * 160
    config.data.caption_weights = ConfigDict({"short": 0.5, "detailed": 0.5})
    config.data.caption_dropout = 0.1
    config.data.workers = 0
    config.data.held_out_batches = 14

    config.vae = "runs/shapes_vae/model"
    config.init = ""  # a model folder whose transformer, text encoder and tokenizer to start from
    config.expert = ""  # of two transformers the one to train: "high" or "low", for that noise
    # With a rank, adapters for the transformer of `config.init` are trained, and nothing else.
    config.lora = ConfigDict({"rank": 0, "alpha": 16.0})
    config.lora.targets = ("self_attention", "cross_attention", "mlp")

    # A model folder whose text encoder and tokenizer are used as they are; if empty, new ones are
    # made, of the sizes below, and the encoder is trained together with the transformer.
    config.text_encoder = ""
    config.tokenizer = ConfigDict({"vocabulary": 384, "captions": 4000, "length": 32})
    config.text = ConfigDict()
    config.text.width = 128
    config.text.layers = 2
    config.text.heads = 4
    config.text.head_width = 32
    config.text.mlp_width = 256

    config.dit = ConfigDict()
    config.dit.width = 128
    config.dit.layers = 8
    config.dit.heads = 4
    config.dit.mlp_width = 512
    config.dit.patch = (1, 2, 2)
    config.dit.time_features = 256
    config.dit.prediction = "clean"

    config.noise = ConfigDict({"mean": 0.0, "std": 1.4, "shift": 3.0, "shift_tokens": 100})
    config.noise.floor = 0.3
    config.patterns = ConfigDict({"none": 0.8, "first_frame": 0.2})
    config.window = 0  # latent frames; longer clips are trained as windows from their middle
    if stage == "prompting":
        config.patterns = ConfigDict(PROMPTING)
        config.window = 5

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1.2e-3 if stage == "short" else 1e-3
    config.optimizer.muon_learning_rate = 0.012 if stage == "short" else 0.006
    config.optimizer.warmup_steps = 200
    config.optimizer.decay_share = 0.4 if stage == "short" else 0.5
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.99
    config.optimizer.clip = 1.0

    config.sampling = ConfigDict()
    config.sampling.steps = 12
    config.sampling.guidance = ConfigDict({"text": 4.5, "given": 2.0})
    config.sampling.solver = "heun"
    config.sampling.latent_limit = 6.0
    config.sampling.size = (96, 64)
    config.sampling.frames = 17
    config.sampling.prompts = (
        "a red circle moves right",
        "a blue square moves up",
        "a large green triangle moves left across a black background",
        "a small yellow circle moves down across a brown background",
    )

    config.loop = ConfigDict()
    config.loop.steps = {"short": 4000, "clips": 19_000, "prompting": 8000}[stage]
    config.loop.ema_decay = 0.999
    config.loop.log_every = 50
    config.loop.evaluate_every = 1000
    config.loop.checkpoint_every = 1000
    config.loop.save_every = 4000
    config.loop.accumulate = 1  # parts of a batch, one after the other
    return config
