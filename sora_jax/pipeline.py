"""A model as a whole: from a prompt to latents to frames."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax import generation, image_prompt
from sora_jax.diffusion.conditioning import Given, lay
from sora_jax.diffusion.experts import split
from sora_jax.diffusion.flow import shift_levels
from sora_jax.diffusion.guidance import Guidance, as_scales, tellings
from sora_jax.diffusion.settings import ModelSettings
from sora_jax.diffusion.solvers import SOLVERS, nothing_yet, schedule, set_off
from sora_jax.frame_coder import FrameCoder
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig
from sora_jax.models.image_pixels import prepare
from sora_jax.models.text import TextConfig
from sora_jax.progress import Progress

# A seed, or a seed and numbers that tell apart what is drawn by it, such as a task and a window.
Seed = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Model(FrameCoder):
    """Everything that makes a video; `sora_jax.load` makes one from a folder.

    Attributes, besides those of `FrameCoder`:
      dit_config, text_config: sizes.
      tokenizer: of prompts.
      settings: defaults of sampling, and what training fixed.
      image_config: sizes of the image encoder; None without one.

    Of `params`, "dit" and "text" are needed too, "dit_low" in a model of two transformers, and
    "image" with an image encoder.
    """

    dit_config: DiTConfig
    text_config: TextConfig
    tokenizer: Tokenizer
    settings: ModelSettings
    image_config: ImageConfig | None = None
    # What was read last, by its tokens: the next window or video may have the same prompt.
    _features: dict[bytes, jax.Array] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def fps(self) -> float:
        return self.settings.fps

    @property
    def latent_frames(self) -> int:
        """Latent frames of the clips that it makes unless told otherwise."""
        return self.latent_shape(self.settings.size, self.settings.frames)[0]

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) on the grid nearest to a shape, with the area of the model's own."""
        area = self.settings.size[0] * self.settings.size[1]
        factor = (area / (width * height)) ** 0.5
        unit = self.vae_config.spatial_stride
        return tuple(max(1, round(side * factor / unit)) * unit for side in (width, height))

    def sample(
        self,
        prompt: str | list[str],
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        solver: str | None = None,
        negative: str | None = None,
        given: Sequence[Given] = (),
        images: Mapping[int, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Frames for a prompt: uint8 [F, H, W, 3], or [B, F, H, W, 3] for a list of prompts.

        Args:
          prompt: one, or several that share everything else but their noise.
          size: (width, height) in pixels.
          frames: 1 + 4k; 1 makes an image.
          seed: of the noise; the same arguments give the same video.
          steps: of the solver.
          guidance: how strongly the prompt is followed, 1 is no guidance; or a `Guidance`, which
            also says how strongly given frames are, where on the path, and how strongly the second
            of two transformers follows the prompt.
          solver: "euler", "heun", "deis" or "unipc".
          negative: a prompt that guidance leads away from, one for all; '' for none in particular.
          given: latents that the clip has or starts from, see `sora_jax.prompting`.
          images: for a model that sees images beside the noise, uint8 [H, W, 3] of the clip's size
            by their frames: the first, and the last where the model takes it.

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
            negative=negative,
            given=given,
            images=images,
        )
        video = self.to_frames(latents)
        return video[0] if isinstance(prompt, str) else video

    def sample_latents(
        self,
        prompt: str | list[str],
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        seed: Seed = 0,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        solver: str | None = None,
        negative: str | None = None,
        given: Sequence[Given] = (),
        images: Mapping[int, np.ndarray] | None = None,
    ) -> jax.Array:
        """Normalised clean latents, float32 [B, T, h, w, C], for the arguments of `sample`."""
        settings = self.settings.override(
            size=size,
            frames=frames,
            steps=steps,
            guidance=guidance,
            solver=solver,
            negative=negative,
        )
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        shape = self.latent_shape(settings.size, settings.frames)
        image_prompt.check(
            self.dit_config, images, given, settings.size, settings.frames, settings.guidance
        )
        shift = self.shift(shape)
        text = self.read(prompts, settings.negative)
        seen = self.look(images, settings.frames) if images else None
        known, strengths = lay(shape, given)
        known = jnp.broadcast_to(known, (len(prompts), *shape))
        ceilings = np.tile(shift_levels(strengths, np.float32(shift)), (len(prompts), 1))
        levels = schedule(settings.steps, shift, strengths.max(), grid=settings.level_grid)
        noise = self.noise(seed, known.shape)
        x = set_off(noise, levels, known, ceilings)
        # Asking the network without given frames is for nothing where none is kept.
        hidden = noise if (strengths == 0).any() else None
        return self.advance(text, x, levels, settings, known, ceilings, hidden, seen=seen)

    def shift(self, latent_shape: tuple[int, int, int, int]) -> float:
        """The schedule's shift for a clip of latents [T, h, w, C]."""
        return self.settings.shift_for(math.prod(self.dit_config.grid(latent_shape[:3])))

    def noise(self, seed: Seed, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal noise.

        Raises:
          ValueError: a seed out of range.
        """
        first, *folded = seed if isinstance(seed, tuple) else (seed,)
        if not isinstance(first, numbers.Integral) or not 0 <= first < 2**32:
            raise ValueError(f"seed {first} is out of range; use a whole one, 0 to {2**32 - 1}")
        key = functools.reduce(jax.random.fold_in, folded, jax.random.key(first))
        return jax.random.normal(key, shape)

    def read(self, prompts: list[str], negative: str = "") -> jax.Array:
        """Text features [2 B, L, D] of the prompts and, for guidance, B times of the negative one.

        Raises:
          ValueError: no prompt, one that is too long, or something else than a text.
        """
        if not prompts:
            raise ValueError("there is no prompt in the list; give at least one, '' for any video")
        length = self.settings.text_length
        texts = [*prompts, *(negative for _ in prompts)]
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"the prompt is {text!r}: give a text, or a list of texts")
            self.tokenizer.check_length(text, length)
        tokens = np.stack([self.tokenizer.encode(text, length) for text in texts])
        key = tokens.tobytes()
        if key not in self._features:
            features = generation.read(self.params["text"], tokens, config=self.text_config)
            self._features.clear()
            self._features[key] = self.finish(features)
        return self._features[key]

    def advance(
        self,
        text: jax.Array,
        x: jax.Array,
        levels: jax.Array,
        settings: ModelSettings,
        known: jax.Array | None = None,
        ceilings: jax.Array | None = None,
        hidden: jax.Array | None = None,
        *,
        ring: int = 0,
        seen: generation.Seen | None = None,
    ) -> jax.Array:
        """Takes noisy latents [B, T, h, w, C] from the first to the last of the levels.

        Args:
          text: features of `read`.
          x, levels, known, ceilings: see `diffusion.solvers.solve`.
          settings: guidance and solver.
          hidden: see `generation.generate`; None for no guidance by given frames.
          ring: see `generation.Program`.
          seen: of `look`.
        """
        # The schedule of a ring is that of its windows.
        shift = self.shift((ring or x.shape[1], *x.shape[2:]))
        slow = generation.is_slow(self.dit_config, x, text.shape[1])
        last, done = nothing_yet(x, levels[0], ceilings) if slow else None, 0
        with Progress("sampled", "step", len(levels) - 1, shown=slow) as progress:
            for part, stretch, guidance in split(levels, settings):
                by_frames = guidance.given != 1 and hidden is not None
                program = generation.Program(
                    self.dit_config,
                    SOLVERS[settings.solver],
                    settings.latent_limit,
                    tellings(text=guidance.text != 1, given=by_frames),
                    guidance.has_interval,
                    guidance.rescale > 0,
                    ring,
                    settings.level_grid,
                )
                told = hidden if by_frames else None
                scales = as_scales(guidance, shift)
                for piece in _steps(stretch) if slow else [stretch]:
                    before = x
                    arrays = text, x, piece, known, ceilings, told, scales, seen, last, done
                    made = generation.generate(self.params[part], *arrays, program=program)
                    x, last = self.finish(made)
                    if done and slow:
                        # The device has the next step already, and never waits.
                        jax.block_until_ready(before)
                        progress.advance()
                    done += len(piece) - 1
            if slow:
                jax.block_until_ready(x)
                progress.advance()
        return x

    def look(self, images: Mapping[int, np.ndarray], frames: int) -> generation.Seen:
        """What the transformer sees of images by their frames, in a clip of so many frames."""
        at = tuple(sorted(images))
        tokens = None
        if self.image_config is not None:
            pixels = np.stack([prepare(images[frame], self.image_config) for frame in at])
            tokens = generation.look(self.params["image"], pixels, config=self.image_config)
            tokens = self.finish(tokens)
        channels = generation.lay_images(
            self.params["vae"],
            np.stack([images[frame] for frame in at]),
            self.latent_mean,
            self.latent_std,
            config=self.vae_config,
            at=at,
            frames=frames,
        )
        return generation.Seen(self.finish(channels), tokens)


def _steps(levels: jax.Array | np.ndarray) -> list[jax.Array | np.ndarray]:
    """The levels of each step."""
    return [levels[i : i + 2] for i in range(len(levels) - 1)]
