"""A run of `hosts_program.py`: batches of eight, a checkpoint every three of twelve steps."""

from tests import tiny_vae


def get_config():
    config = tiny_vae.get_config()
    config.task = "colour"
    config.data.folder = ""
    config.data.clips = 64
    config.data.buckets = ((1, 16, 16), (5, 16, 16))
    config.data.token_budget = 32
    config.data.most_clips = 8
    config.optimizer.learning_rate = 0.05
    config.loop.steps = 12
    return config
