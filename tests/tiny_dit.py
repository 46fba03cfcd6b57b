"""The smallest transformer that goes through train.py: `configs/shapes_dit.py` in seconds."""

from configs import shapes_dit


def get_config():
    config = shapes_dit.get_config()
    config.data.folder = "set on the command line"
    config.data.buckets = ((1, 16, 16), (5, 16, 32))
    config.data.bucket_weights = ()
    config.data.token_budget = 8
    config.data.most_clips = 0
    config.data.held_out_batches = 2
    config.tokenizer.vocabulary = 280
    config.tokenizer.length = 16
    config.text.width = 16
    config.text.layers = 1
    config.text.heads = 2
    config.text.head_width = 8
    config.text.mlp_width = 16
    config.dit.width = 32
    config.dit.layers = 2
    config.dit.heads = 2
    config.dit.mlp_width = 32
    config.dit.time_features = 16
    config.optimizer.warmup_steps = 2
    config.sampling.steps = 2
    config.sampling.size = (32, 16)
    config.sampling.frames = 5
    config.sampling.prompts = ("a red circle moves right",)
    config.loop.steps = 40
    config.loop.log_every = 1
    config.loop.evaluate_every = 1000
    config.loop.checkpoint_every = 8
    config.loop.save_every = 1000
    return config
