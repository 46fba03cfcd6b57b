"""The smallest VAE that goes through train.py: `configs/shapes_vae.py` in seconds."""

from configs import shapes_vae


def get_config():
    config = shapes_vae.get_config()
    config.data.folder = "set on the command line"
    config.data.buckets = ((5, 16, 32),)
    config.data.bucket_weights = ()
    config.data.token_budget = 16
    config.data.most_clips = 0
    config.data.held_out_batches = 2
    config.vae.encoder_width = 4
    config.vae.decoder_width = 4
    config.vae.multipliers = (1, 1, 2)
    config.vae.latent_channels = 4
    config.optimizer.muon_learning_rate = 0.0  # takes longest to compile
    config.optimizer.warmup_steps = 2
    config.loop.steps = 6
    config.loop.log_every = 1
    config.loop.evaluate_every = 100
    config.loop.checkpoint_every = 3
    config.loop.save_every = 100
    return config
