"""An open model, or any other, trained further on a folder of one's own clips.

    python -m sora_jax.weights import --source=FOLDER_OF_OPEN_MODEL --output=models/wan2.1
    python -m sora_jax.data.folder --clips=CLIPS --output=data/clips
    python -m sora_jax.data.precompute --config=configs/finetune.py:lora \
        --config.init=models/wan2.1 --config.data.folder=data/clips --output=data/clips_latents
    python train.py --config=configs/finetune.py:lora --workdir=runs/my_lora \
        --config.init=models/wan2.1 --config.data.latents=data/clips_latents
    python sample.py --checkpoint=runs/my_lora --prompt=TEXT --output=video.mp4

`lora` trains adapters of rank 16 and writes `pytorch_lora_weights.safetensors`, which diffusers
reads too; `full` trains the whole transformer and writes a whole model. VAE and text encoder stay
as they are. What is None here is the model's: sizes, buckets, levels, and how it samples. Without
`precompute` (give config.data.folder to train.py), VAE and text encoder work in every step and take
their memory on every device.

A model that only makes videos from text learns to go on from given frames by the patterns:
--config.patterns.none=0.5 --config.patterns.first_frame=0.3 --config.patterns.prefix=0.2

Of a model of two transformers, Wan 2.2 A14B, a run trains one: --config.expert=high or low.

What to expect, measured with the model that ships, is in docs/finetuning.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import shapes_dit

KINDS = ("lora", "full")


def get_config(kind="lora"):
    if kind not in KINDS:
        raise ValueError(f"finetune.py has no kind {kind!r}; use one of {KINDS}")
    config = shapes_dit.get_config()
    config.dtype = "bfloat16"
    config.remat = "results"
    config.mesh = ConfigDict({"data": -1, "fsdp": -1, "context": 1, "tensor": 1})

    config.data.folder = "data/clips"
    config.data.fps = placeholder(float)
    config.data.buckets = placeholder(tuple)
    config.data.bucket_weights = ()
    config.data.token_budget = 1  # one clip for each part of the mesh that has its own
    config.data.most_clips = 0
    config.data.held_out_batches = 4

    config.init = "models/wan2.1"
    config.vae = placeholder(str)
    config.text_encoder = placeholder(str)
    config.tokenizer.length = placeholder(int)
    config.dit = ConfigDict()
    config.noise = ConfigDict({"mean": 0.0, "std": 1.0, "floor": 0.05})
    config.noise.shift, config.noise.shift_tokens = placeholder(float), placeholder(int)
    config.patterns = ConfigDict({**dict.fromkeys(shapes_dit.PROMPTING, 0.0), "none": 1.0})

    config.lora.rank = 16 if kind == "lora" else 0
    config.lora.alpha = 16.0
    config.optimizer.learning_rate = 1e-4 if kind == "lora" else 1e-5
    config.optimizer.muon_learning_rate = 0.0  # AdamW on all
    config.optimizer.warmup_steps = 50
    config.optimizer.decay_share = 0.2
    config.optimizer.weight_decay = 0.0 if kind == "lora" else 0.01
    config.optimizer.b2 = 0.95

    config.sampling = ConfigDict({"prompts": ()})
    kinds = {"size": tuple, "frames": int, "steps": int, "solver": str}
    for name, kind in {**kinds, "guidance": float, "negative": str}.items():
        config.sampling[name] = placeholder(kind)
    config.loop.steps = 1000
    config.loop.ema_decay = 0.99
    config.loop.evaluate_every = 250
    config.loop.checkpoint_every = 250
    config.loop.save_every = 500
    return config
