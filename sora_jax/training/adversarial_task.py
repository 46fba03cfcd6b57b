"""Training the VAE against a discriminator, both by the gradient of one loss."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sora_jax.models.discriminator import Discriminator, init_discriminator
from sora_jax.training.losses import hinge_loss
from sora_jax.training.state import Batch, Metrics
from sora_jax.training.vae_task import VAETask


@dataclasses.dataclass
class AdversarialTask:
    """The task of `sora_jax.training.state.Task` for a VAE and the discriminator beside it.

    What is trained is {"vae", "discriminator"}; what is scored and written is the VAE alone.

    Attributes:
      vae: the task of the VAE, whose loss this one adds to.
      weight: of the adversarial terms, relative to L1.
    """

    vae: VAETask
    weight: float

    @property
    def frozen(self) -> Any:
        return self.vae.frozen

    @property
    def start(self) -> Any:
        return None if self.vae.start is None else {"vae": self.vae.start}

    def init(self, key: jax.Array) -> Any:
        vae_key, discriminator_key = jax.random.split(key)
        return {
            "vae": self.vae.init(vae_key),
            "discriminator": init_discriminator(discriminator_key),
        }

    def loss(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        loss, metrics, real, fake = self.vae.compare(params["vae"], frozen, batch, key)
        apply = Discriminator(dtype=self.vae.dtype).apply
        learning = {"params": params["discriminator"]}
        # Each term moves one of the two: the other is a constant in it.
        adversarial = -jnp.mean(apply(jax.lax.stop_gradient(learning), fake))
        real_score = apply(learning, real)
        fake_score = apply(learning, jax.lax.stop_gradient(fake))
        discriminator = hinge_loss(real_score, fake_score)
        right = jnp.mean(real_score > 0) + jnp.mean(fake_score < 0)
        # Gradients are clipped together, and the optimizers go by directions, not by sizes: weighed
        # alike, the discriminator learns as fast and does not use up what the VAE may move.
        return loss + self.weight * (adversarial + discriminator), {
            **metrics,
            "adversarial": adversarial,
            "discriminator": discriminator,
            "discriminator_accuracy": right / 2.0,
        }

    def evaluate(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        return self.vae.evaluate(params["vae"], frozen, batch, key)

    def flops(self, batch: Batch) -> float:
        frames = jax.ShapeDtypeStruct(batch["frames"].shape, jnp.float32)
        params = nn.meta.unbox(jax.eval_shape(init_discriminator, jax.random.key(0)))
        forward = jax.jit(Discriminator(dtype=self.vae.dtype).apply)
        cost = forward.lower({"params": params}, frames).cost_analysis()["flops"]
        # Three passes for the real frames, three for the fake ones, two for the way to the VAE.
        return self.vae.flops(batch) + 8.0 * cost

    def save(self, folder: pathlib.Path, params: Any, scores: dict[str, Any]) -> None:
        self.vae.save(folder, params["vae"], scores)
