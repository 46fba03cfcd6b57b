"""A run of `hosts_program.py`, in seconds: batches of four and eight, on any number of hosts."""

from tests import tiny_vae


def get_config():
    config = tiny_vae.get_config()
    config.task = "colour"
    config.data.folder = ""
    config.data.clips = 64
    config.data.buckets = ((1, 16, 16), (5, 16, 16))
    config.data.token_budget = 44  # five clips, were it not for a multiple of four devices
    config.data.most_clips = 8
    config.optimizer.learning_rate = 0.005
    config.loop.steps = 12
    return config
