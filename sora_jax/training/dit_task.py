"""Training the diffusion transformer, and a small text encoder with it, in the latents of a VAE."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.conditioning import draw_frame_levels
from sora_jax.diffusion.experts import HIGH, inside, levels_of
from sora_jax.diffusion.flow import (
    add_noise,
    draw_levels,
    shift_levels,
    token_shift,
    told_levels,
)
from sora_jax.models.dit import DiT, init_dit
from sora_jax.models.dit_config import DiTConfig, attention_flops, flops
from sora_jax.models.image import ImageConfig, count_tokens, image_tokens
from sora_jax.models.image_latents import see_frames, with_mask
from sora_jax.models.image_pixels import seen_places
from sora_jax.models.lora import LoRAConfig, init_lora, scaled
from sora_jax.models.text import TextConfig, TextEncoder, init_text
from sora_jax.models.vae import VAEConfig, encode_frames
from sora_jax.training.levels import NoiseConfig, level_shares
from sora_jax.training.losses import flow_loss
from sora_jax.training.state import Batch, Metrics
from sora_jax.weights.lora import lora_to_diffusers
from sora_jax.weights.lora_folder import save_lora
from sora_jax.weights.model_folder import Part, save_model

# The first latent frame of a clip is one frame, and that of a window holds four, which the network
# must see in it: that of a window never has a higher level in training.
SHOWS_ITS_KIND = 0.7


def draw_windows(key: jax.Array, latents: jax.Array, frames: int) -> jax.Array:
    """A window of each clip [B, T, ...] at random, [B, frames, ...], never from its beginning."""
    starts = jax.random.randint(key, latents.shape[:1], 1, latents.shape[1] - frames + 1)
    return jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, frames))(
        latents, starts
    )


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What a LoRA run trains, and the model that it is for.

    Attributes:
      config: sizes.
      base: model folder of the transformer.
      base_sha256: of that transformer.
    """

    config: LoRAConfig
    base: pathlib.Path
    base_sha256: str


@dataclasses.dataclass
class DiTTask:
    """The task of `sora_jax.training.state.Task` for the transformer.

    Batches have `frames` uint8 or normalised `latents`, and `tokens` or the `text` features of a
    frozen encoder. Of a transformer that sees images beside the noise they have `image_latents`
    with `latents`, and if it reads image tokens `pixels` or `image_tokens`.

    Attributes:
      config, text_config, vae_config: sizes.
      dtype: compute dtype.
      noise: distribution of levels.
      patterns: frequency of the conditioning patterns, see `conditioning.PATTERNS`.
      window: clips of more latent frames are trained as windows of so many from their middle, which
        is what rolling and extending see; 0 takes every clip whole.
      frozen: {"vae": parameters, "latent_mean", "latent_std"}, and "text" if it is not trained,
        "image" with an image encoder.
      remat: what the backward pass keeps of a block, see `models.remat.REMAT`.
      tokenizer, settings: go into the model folder.
      start: parameters to start from; None to draw them.
      precomputed: what of `frozen` was at work on the batches before; for the model folder.
      adapters: what is trained where `frozen` holds the transformer, as "dit"; None to train it.
      part: of the model, that is trained; of two transformers one is, at the levels that it is
        asked at.
      kept: parts of the model folder that the run does not change, as files to copy.
      image_config: sizes of the image encoder; None without one.
    """

    config: DiTConfig
    text_config: TextConfig
    vae_config: VAEConfig
    dtype: Any
    noise: NoiseConfig
    patterns: Mapping[str, float]
    frozen: dict[str, Any]
    remat: str
    window: int
    tokenizer: Any
    settings: dict[str, Any]
    start: Any = None
    precomputed: dict[str, Any] = dataclasses.field(default_factory=dict)
    adapters: Adapters | None = None
    part: str = HIGH
    kept: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    image_config: ImageConfig | None = None

    def init(self, key: jax.Array) -> Any:
        dit_key, text_key = jax.random.split(key)
        if self.adapters is not None:
            return {"lora": init_lora(self.config, self.adapters.config, dit_key)}
        params = {"dit": init_dit(self.config, dit_key)}
        if "text" not in {**self.frozen, **self.precomputed}:
            params["text"] = init_text(self.text_config, text_key)
        return params

    def _variables(self, params: Any, frozen: Any) -> dict[str, Any]:
        """What the transformer is applied with."""
        if self.adapters is None:
            return {"params": params["dit"]}
        return {
            "params": frozen["dit"],
            "lora": scaled(params["lora"], self.adapters.config.scale),
        }

    def _latents(self, frozen: Any, batch: Batch) -> jax.Array:
        if "latents" in batch:
            return batch["latents"].astype(jnp.float32)
        mean, std = frozen["latent_mean"], frozen["latent_std"]
        return encode_frames(self.vae_config, frozen["vae"], batch["frames"], mean, std, self.dtype)

    def _text(self, params: Any, frozen: Any, batch: Batch) -> jax.Array:
        if "text" in batch:
            return batch["text"]
        text = params["text"] if "text" in params else frozen["text"]
        return TextEncoder(self.text_config, self.dtype).apply({"params": text}, batch["tokens"])

    def _seen(self, frozen: Any, batch: Batch) -> tuple[jax.Array | None, jax.Array | None]:
        """Channels [B, T, h, w, image_channels] beside the noise, and image tokens, if any.

        They are what sampling is given of the clip's own first frame, or of the first and the last.
        """
        if not self.config.image_channels:
            return None, None
        if "image_latents" in batch:
            latents = batch["image_latents"].astype(jnp.float32)
            length = 1 + (latents.shape[1] - 1) * self.vae_config.temporal_stride
        else:
            given = batch["frames"], frozen["latent_mean"], frozen["latent_std"], self.dtype
            latents = see_frames(self.config, self.vae_config, frozen["vae"], *given)
            length = batch["frames"].shape[1]
        at = seen_places(length, last=self.config.sees_last)
        channels = with_mask(latents, at=at, frames=length)
        if "image_tokens" in batch:
            return channels, batch["image_tokens"].astype(jnp.float32)
        if self.image_config is None:
            return channels, None
        return channels, image_tokens(self.image_config, frozen["image"], batch["pixels"])

    def _clip_losses(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Loss [B] of each clip, and the mean level [B] of its frames that are not given."""
        level_key, noise_key, pattern_key, window_key = jax.random.split(key, 4)
        clean = self._latents(frozen, batch)
        is_window = 0 < self.window < clean.shape[1]
        if is_window:
            clean = draw_windows(window_key, clean, self.window)
        b, frames = clean.shape[:2]
        noise_config = self.noise
        shift, shares = self._shift(clean.shape[1:4]), self.level_shares(clean.shape[1:4])
        t = draw_levels(level_key, b, mean=noise_config.mean, std=noise_config.std, shares=shares)
        t = shift_levels(t, shift)
        if self._range is not None:
            t = jnp.clip(t, *inside(*self._range))
        levels = draw_frame_levels(pattern_key, t, frames, self.patterns, shift)
        if is_window:
            levels = levels.at[:, 0].min(SHOWS_ITS_KIND)
        held = levels == 0
        noise = jax.random.normal(noise_key, clean.shape)
        x = add_noise(clean, noise, levels)
        channels, tokens = self._seen(frozen, batch)
        prediction = DiT(self.config, self.dtype, self.remat).apply(
            self._variables(params, frozen),
            x if channels is None else jnp.concatenate([x, channels], axis=-1),
            told_levels(levels, self.settings.get("level_grid")),
            self._text(params, frozen, batch),
            *(() if tokens is None else (tokens,)),
        )
        is_clean = self.config.prediction == "clean"
        target = clean if is_clean else noise - clean
        floor = noise_config.floor
        losses = flow_loss(prediction, target, levels, held, clean=is_clean, floor=floor)
        return losses, jnp.sum(levels, axis=1) / jnp.sum(~held, axis=1)

    def _shift(self, latent_shape: tuple[int, ...]) -> float:
        tokens = int(np.prod(self.config.grid(latent_shape)))
        return token_shift(tokens, base=self.noise.shift, base_tokens=self.noise.shift_tokens)

    @property
    def _range(self) -> tuple[float, float] | None:
        """Levels that one of two transformers is asked at; None where there is one."""
        boundary = self.settings.get("boundary")
        if boundary is None:
            return None
        return levels_of(self.part, boundary, self.settings.get("level_grid"))

    def level_shares(self, latent_shape: tuple[int, ...]) -> tuple[float, float]:
        """Which of the levels that `noise` draws are trained at; raises as `levels` does."""
        if self._range is None:
            return 0.0, 1.0
        return level_shares(self.noise, self._range, self._shift(latent_shape))

    def loss(
        self, params: Any, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        losses, t = self._clip_losses(params, frozen, batch, key)
        metrics = {}
        # By thirds of the level: what is decided at high noise hides in the mean.
        for name, low, high in (("low", 0.0, 0.5), ("middle", 0.5, 0.8), ("high", 0.8, 1.01)):
            within = ((t >= low) & (t < high)).astype(jnp.float32)
            metrics[f"loss_{name}_noise"] = jnp.where(
                jnp.sum(within) > 0,
                jnp.sum(losses * within) / jnp.maximum(jnp.sum(within), 1.0),
                jnp.nan,
            )
        return jnp.mean(losses), metrics

    def evaluate(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        # The key is the same at each evaluation: the same noise at the same levels.
        return {"loss": jnp.mean(self._clip_losses(params, frozen, batch, key)[0])}

    def flops(self, batch: Batch) -> float:
        if "latents" in batch:
            latent_shape = batch["latents"].shape[1:4]
        else:
            latent_shape = self.vae_config.latent_shape(*batch["frames"].shape[1:4])[:3]
        frames, *sides = latent_shape
        frames = min(frames, self.window) if self.window else frames
        clips = next(iter(batch.values())).shape[0]
        tokens = int(np.prod(self.config.grid((frames, *sides))))
        words = (batch["tokens"] if "tokens" in batch else batch["text"]).shape[1]
        seen = count_tokens(self.config.image_positions, self.image_config)
        every = flops(self.config, tokens, words, frames, seen)
        if self.adapters is None:
            return 3.0 * clips * every
        # Gradients of weights are those of adapters alone, which are small.
        return clips * (2.0 * every + attention_flops(self.config, tokens, words + seen))

    def save(self, folder: pathlib.Path, params: Any, scores: dict[str, Any]) -> None:
        if self.adapters is not None:
            adapters = scaled(params["lora"], self.adapters.config.scale)
            tensors = lora_to_diffusers(adapters, self.config)
            base = self.adapters.base, self.adapters.base_sha256
            part = None if self._range is None else self.part
            save_lora(folder, tensors, *base, self.settings, part)
            return
        fixed = {**self.frozen, **self.precomputed}
        vae = {
            **dataclasses.asdict(self.vae_config),
            "latent_mean": [float(x) for x in fixed["latent_mean"]],
            "latent_std": [float(x) for x in fixed["latent_std"]],
        }
        text = params["text"] if "text" in params else fixed["text"]
        parts = {
            "vae": Part(vae, fixed["vae"]),
            self.part: Part(dataclasses.asdict(self.config), params["dit"]),
            "text": Part(dataclasses.asdict(self.text_config), text),
            **self.kept,
        }
        save_model(folder, parts, self.settings, tokenizer=self.tokenizer)
