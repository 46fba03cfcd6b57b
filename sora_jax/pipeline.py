"""From a prompt to frames: text encoder, solver over the transformer, decoder."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.diffusion.conditioning import Given, lay
from sora_jax.diffusion.flow import clean_from_velocity, shift_levels, token_shift
from sora_jax.diffusion.settings import ModelSettings, read_settings
from sora_jax.diffusion.solvers import SOLVERS, Step, guide, limit_range, schedule, solve
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.dit import DiT, DiTConfig
from sora_jax.models.pixels import to_uint8
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.vae import VAE, VAEConfig, denormalise, encode_frames
from sora_jax.weights.model_folder import find_model, load_description
from sora_jax.weights.parts import LoadedVAE, check_vocabulary, load_dit, load_text, load_vae

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"

# Latents this much larger are decoded in chunks of frames, so that memory does not grow with time.
WHOLE_DECODE = 40_000
CHUNK_FRAMES = 4


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that makes a video; `sora_jax.load` makes one from a folder.

    Attributes:
      vae_config, dit_config, text_config: sizes.
      params: {"vae", "dit", "text"}.
      latent_mean, latent_std: [C], of the VAE's latents.
      tokenizer: of prompts.
      settings: defaults of sampling, and what training fixed.
    """

    vae_config: VAEConfig
    dit_config: DiTConfig
    text_config: TextConfig
    params: dict[str, Any]
    latent_mean: jax.Array
    latent_std: jax.Array
    tokenizer: Tokenizer
    settings: ModelSettings

    @property
    def fps(self) -> float:
        return self.settings.fps

    def latent_shape(self, size: tuple[int, int], frames: int) -> tuple[int, int, int, int]:
        """[T, h, w, C] of a clip of `size` (width, height).

        Raises:
          ValueError: a size or length that the grid cannot hold; the message names the nearest.
        """
        width, height = size
        for name, side, patch in zip(("width", "height"), size, self.dit_config.patch[:0:-1]):
            unit = self.vae_config.spatial_stride * patch
            if side < unit or side % unit:
                low = max(unit, side // unit * unit)
                raise ValueError(
                    f"{name} {side} does not fit the grid of the model: it must be a multiple of "
                    f"{unit}, the nearest are {low} and {low + unit}"
                )
        return self.vae_config.latent_shape(frames, height, width)

    def sample(
        self,
        prompt: str | list[str],
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        given: Sequence[Given] = (),
    ) -> np.ndarray:
        """Frames for a prompt: uint8 [F, H, W, 3], or [B, F, H, W, 3] for a list of prompts.

        Args:
          prompt: one, or several that share everything else but their noise.
          size: (width, height) in pixels.
          frames: 1 + 4k; 1 makes an image.
          seed: of the noise; the same arguments give the same video.
          steps: of the solver.
          guidance: how strongly the prompt is followed; 1 is no guidance.
          solver: "euler", "heun" or "deis".
          given: latents that the clip has or starts from, see `sora_jax.prompting`.

        Raises:
          ValueError: a value that the model cannot serve, with the remedy.
        """
        latents = self.sample_latents(
            prompt,
            size=size,
            frames=frames,
            seed=seed,
            steps=steps,
            guidance=guidance,
            solver=solver,
            given=given,
        )
        video = np.concatenate(list(self.decode(latents)), axis=1)
        return video[0] if isinstance(prompt, str) else video

    def sample_latents(
        self,
        prompt: str | list[str],
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        given: Sequence[Given] = (),
    ) -> jax.Array:
        """Normalised clean latents, float32 [B, T, h, w, C], for the arguments of `sample`."""
        settings = self.settings.override(
            size=size, frames=frames, steps=steps, guidance=guidance, solver=solver
        )
        size = settings.size
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed {seed} is out of range; use 0 to {2**32 - 1}")
        shape = self.latent_shape(size, settings.frames)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("there is no prompt in the list; give at least one, '' for any video")
        tokens = np.stack([self._tokens(text) for text in prompts])
        empty = self.tokenizer.encode("", settings.text_length)[None]

        key = jax.random.key(seed)
        noise = jax.random.normal(key, (len(prompts), *shape))
        count = int(np.prod(self.dit_config.grid(shape[:3])))
        shift = token_shift(count, base=settings.shift, base_tokens=settings.shift_tokens)
        known, strengths = lay(shape, given)
        ceilings = shift_levels(strengths, shift)
        return _generate(
            self.params,
            tokens,
            empty,
            noise,
            jnp.broadcast_to(known, noise.shape),
            jnp.broadcast_to(ceilings, noise.shape[:2]),
            schedule(settings.steps, shift, strengths.max()),
            jnp.float32(settings.guidance),
            dit_config=self.dit_config,
            text_config=self.text_config,
            step=SOLVERS[settings.solver],
            limit=settings.latent_limit,
        )

    def _tokens(self, text: str) -> np.ndarray:
        limit = self.settings.text_length
        count = self.tokenizer.count(text)
        if count > limit:
            raise ValueError(
                f"the prompt takes {count} tokens, and the model reads {limit}; shorten it"
            )
        return self.tokenizer.encode(text, limit)

    def encode(self, frames: np.ndarray) -> jax.Array:
        """Normalised latents [B, T, h, w, C] of frames uint8 [B, F, H, W, 3]."""
        self.vae_config.latent_shape(*frames.shape[1:4])
        return _encode(
            self.vae_config, self.params["vae"], frames, self.latent_mean, self.latent_std
        )

    def decode(self, latents: jax.Array) -> Iterator[np.ndarray]:
        """Frames of normalised latents, uint8 [B, f, H, W, 3] chunk by chunk in order."""
        z = denormalise(latents, self.latent_mean, self.latent_std)
        chunk = z.shape[1] if z[0].size <= WHOLE_DECODE else CHUNK_FRAMES
        carry = None
        for start in range(0, z.shape[1], chunk):
            frames, carry = _decode(
                self.params["vae"], z[:, start : start + chunk], carry, config=self.vae_config
            )
            yield np.asarray(frames)


_encode = jax.jit(encode_frames, static_argnums=0)


@functools.partial(jax.jit, static_argnames="config")
def _decode(params: Any, z: jax.Array, carry: Any, *, config: VAEConfig) -> tuple[jax.Array, Any]:
    frames, carry = VAE(config).apply({"params": params}, z, carry, method="decode")
    return to_uint8(frames), carry


@functools.partial(jax.jit, static_argnames=("dit_config", "text_config", "step", "limit"))
def _generate(
    params: Any,
    tokens: jax.Array,
    empty: jax.Array,
    noise: jax.Array,
    known: jax.Array,
    ceilings: jax.Array,
    levels: jax.Array,
    guidance: jax.Array,
    *,
    dit_config: DiTConfig,
    text_config: TextConfig,
    step: Step,
    limit: float,
) -> jax.Array:
    """Compiled once a size and number of steps: prompt, seed and guidance are data."""
    batch = noise.shape[0]
    both = jnp.concatenate([tokens, jnp.broadcast_to(empty, tokens.shape)])
    text = TextEncoder(text_config).apply({"params": params["text"]}, both)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        x, t = jnp.concatenate([x, x]), jnp.concatenate([t, t])
        y = DiT(dit_config).apply({"params": params["dit"]}, x, t, text)
        if dit_config.prediction == "velocity":
            y = clean_from_velocity(x, y, t)
        return limit_range(guide(y[:batch], y[batch:], guidance), limit)

    return solve(denoise, noise, levels, step=step, known=known, ceilings=ceilings)


def load(folder: str | pathlib.Path | None = None) -> Model:
    """The model of a folder; the shipped one if None.

    Args:
      folder: a model folder, or the work folder of a training run.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or of another configuration.
    """
    folder = find_model(PRETRAINED if folder is None else folder)
    description = load_description(folder)
    vae = load_vae(folder)
    dit_config, dit_params = load_dit(folder)
    text_config, text_params = load_text(folder)
    params = {"vae": vae.params, "dit": dit_params, "text": text_params}
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    _check_parts(folder, vae, dit_config, text_config)
    check_vocabulary(folder, tokenizer.vocabulary, text_config)
    return Model(
        vae.config,
        dit_config,
        text_config,
        jax.tree.map(jnp.asarray, params),
        jnp.asarray(vae.mean),
        jnp.asarray(vae.std),
        tokenizer,
        read_settings(description, folder),
    )


def _check_parts(
    folder: pathlib.Path, vae: LoadedVAE, dit_config: DiTConfig, text_config: TextConfig
) -> None:
    """Raises ValueError where parts that are whole by themselves do not fit each other."""
    channels = vae.config.latent_channels
    for what, given, fits in (
        ("latent_channels of the dit", dit_config.latent_channels, channels),
        ("length of latent_mean", vae.mean.size, channels),
        ("length of latent_std", vae.std.size, channels),
        ("text_width of the dit", dit_config.text_width, text_config.width),
    ):
        if given != fits:
            raise ValueError(
                f"{folder}: the {what} is {given}, and the parts beside it need {fits}; they are "
                "of different models: take all of them from one"
            )
