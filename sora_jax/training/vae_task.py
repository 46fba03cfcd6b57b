"""Training the VAE: reconstruction of images and clips in native shapes."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from sora_jax.evaluation.reconstruction import psnr, ssim
from sora_jax.models.pixels import to_float, to_uint8
from sora_jax.models.sizes import abstract_params
from sora_jax.models.vae import VAE, VAEConfig, init_vae
from sora_jax.training.losses import change_loss, gradient_loss, kl_loss
from sora_jax.training.state import Batch, Metrics
from sora_jax.video_io import write
from sora_jax.weights.model_folder import Part, save_model
from sora_jax.weights.parts import LoadedVAE


@dataclasses.dataclass
class VAETask:
    """The task of `sora_jax.training.state.Task` for the VAE.

    Attributes:
      config: the network's sizes.
      dtype: compute dtype.
      kl_weight: of the KL term, relative to L1.
      gradient_weight: of the multi-scale gradient term, relative to L1.
      change_weight: of the term for changes from frame to frame, relative to L1.
      fps: written into the model folder.
      show: a few held-out batches whose reconstructions are written with the model.
      begin: the VAE to start from; None to draw one.
      keep_encoder: whether its latents stay what they are, and the decoder alone is trained.
    """

    config: VAEConfig
    dtype: Any
    kl_weight: float
    gradient_weight: float
    change_weight: float
    fps: float
    show: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    begin: LoadedVAE | None = None
    keep_encoder: bool = False

    @property
    def frozen(self) -> Any:
        return {"encoder": self.begin.params["encoder"]} if self.keep_encoder else {}

    @property
    def start(self) -> Any:
        return None if self.begin is None else self._trained(self.begin.params)

    def init(self, key: jax.Array) -> Any:
        return self._trained(init_vae(self.config, key))

    def _trained(self, params: Any) -> Any:
        return {"decoder": params["decoder"]} if self.keep_encoder else params

    def _encode(self, params: Any, frames: jax.Array) -> tuple:
        vae = VAE(self.config, self.dtype)
        return vae.apply({"params": params}, to_float(frames), method="encode")

    def _reconstruct(
        self, params: Any, frozen: Any, frames: jax.Array, key: jax.Array | None
    ) -> tuple:
        x = to_float(frames)
        b, f, h, w, _ = x.shape
        shape = (b, *self.config.latent_shape(f, h, w))
        noise = jnp.zeros(shape) if key is None else jax.random.normal(key, shape)
        params = {**frozen, **params}
        return x, *VAE(self.config, self.dtype).apply({"params": params}, x, noise)

    def compare(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics, jax.Array, jax.Array]:
        """The loss, what is logged of it, and the frames and their reconstruction in floats."""
        x, y, mean, logvar = self._reconstruct(params, frozen, batch["frames"], key)
        l1, l2 = jnp.mean(jnp.abs(x - y)), jnp.mean(jnp.square(x - y))
        gradient, change = gradient_loss(x, y), change_loss(x, y)
        kl = kl_loss(mean, logvar)
        # L1 alone is content to leave out what is small and rare; the square is not.
        loss = l1 + l2 + self.gradient_weight * gradient + self.kl_weight * kl
        loss += self.change_weight * change
        mse = jnp.mean(jnp.square(x - jnp.clip(y, -1.0, 1.0)))
        metrics = {
            "l1": l1,
            "gradient": gradient,
            # An image has none, and would lower the mean.
            "change": change if x.shape[1] > 1 else jnp.nan,
            "kl": kl,
            "psnr": 10.0 * jnp.log10(4.0 / mse),
        }
        return loss, metrics, x, y

    def loss(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        loss, metrics, _, _ = self.compare(params, frozen, batch, key)
        return loss, metrics

    def evaluate(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        x, y, mean, logvar = self._reconstruct(params, frozen, batch["frames"], None)
        y = jnp.clip(y, -1.0, 1.0)
        return {
            "psnr": jnp.mean(psnr(x, y)),
            "ssim": jnp.mean(ssim(x, y)),
            # Of a clip, as scores are means over clips: an image has few of all latents.
            "latents_a_clip": jnp.float32(np.prod(mean.shape[1:4])),
            "latent_sum": jnp.sum(mean, axis=(1, 2, 3)).mean(axis=0),
            # Of drawn latents: a channel that carries nothing has a tiny mean and a variance of
            # one, and must not be blown up to count as much as the others.
            "latent_squares": jnp.sum(jnp.square(mean) + jnp.exp(logvar), axis=(1, 2, 3)).mean(
                axis=0
            ),
        }

    def flops(self, batch: Batch) -> float:
        frames = jax.ShapeDtypeStruct(batch["frames"].shape, jnp.uint8)
        params = nn.meta.unbox(abstract_params(init_vae, self.config))

        def count(network: Callable[[Any, jax.Array], jax.Array]) -> float:
            return jax.jit(network).lower(params, frames).cost_analysis()["flops"]

        flops = 3.0 * count(lambda params, frames: self._reconstruct(params, {}, frames, None)[1])
        if self.keep_encoder:  # which has no backward pass
            flops -= 2.0 * count(lambda params, frames: self._encode(params, frames)[0])
        return flops

    def save(self, folder: pathlib.Path, params: Any, scores: dict[str, Any]) -> None:
        if self.keep_encoder:
            params = {**self.frozen, **params}
            mean, std = self.begin.mean, self.begin.std
        else:
            count = np.float64(scores["latents_a_clip"])
            mean = np.asarray(scores["latent_sum"], np.float64) / count
            square = np.asarray(scores["latent_squares"], np.float64) / count
            std = np.sqrt(np.maximum(square - mean**2, 1e-8))
        settings = {
            **dataclasses.asdict(self.config),
            "latent_mean": [round(float(m), 6) for m in mean],
            "latent_std": [round(float(s), 6) for s in std],
        }
        save_model(folder, {"vae": Part(settings, params)}, {"fps": self.fps})

        @jax.jit
        def reconstruct(params: Any, frames: jax.Array) -> jax.Array:
            return to_uint8(self._reconstruct(params, {}, frames, None)[1])

        for i, batch in enumerate(self.show):
            frames = np.asarray(batch["frames"][:4])
            pairs = np.concatenate([frames, np.asarray(reconstruct(params, frames))], axis=2)
            row = np.concatenate(list(pairs), axis=2)
            suffix = "png" if row.shape[0] == 1 else "mp4"
            write(folder / f"reconstruction_{i}.{suffix}", row, fps=self.fps)
