"""Networks that are not trained: loading a text encoder, encoding batches on all devices."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sora_jax.data.captions import KINDS
from sora_jax.language.tokenizer import Tokenizer
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.image import ImageConfig, image_tokens
from sora_jax.models.image_latents import see_frames
from sora_jax.models.text import TextConfig, TextEncoder
from sora_jax.models.vae_clips import encode_clip
from sora_jax.sharding import batch_sharding, make_mesh
from sora_jax.weights.fit import check_vocabulary
from sora_jax.weights.parts import LoadedVAE, load_text, open_parts

Encoder = Callable[[np.ndarray], jax.Array]


class TextParts(NamedTuple):
    """A text encoder: its tokenizer, sizes and parameters; None where they are to be trained."""

    tokenizer: Tokenizer
    config: TextConfig
    params: Any


def load_text_encoder(folder: str | pathlib.Path) -> TextParts:
    """The text encoder of a model folder and its tokenizer, to be used as they are.

    Raises:
      ValueError: one of them is missing or damaged, or they do not belong together.
    """
    try:
        config, params = load_text(folder)
        tokenizer = Tokenizer.from_file(pathlib.Path(folder) / "tokenizer.json")
        check_vocabulary(folder, tokenizer.vocabulary, config)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"config.text_encoder={folder}: {error}. Name a model folder that has text.safetensors "
            "and tokenizer.json, or leave it empty to train a new text encoder"
        ) from error
    return TextParts(tokenizer, config, params)


def make_frame_encoder(vae: LoadedVAE, dtype: Any) -> Encoder:
    """From uint8 frames [B, F, H, W, 3] to normalised latents float32 [B, T, h, w, C]."""

    def encode(frozen: Any, frames: jax.Array) -> jax.Array:
        params, mean, std = frozen
        return encode_clip(vae.config, params, frames, mean, std, dtype)

    return _on_all_devices(encode, (vae.params, vae.mean, vae.std))


def load_image_encoder(folder: pathlib.Path, *, read: bool) -> tuple[ImageConfig, Any]:
    """Sizes of the image encoder of a model folder, and its parameters; None unless they are read.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or one that its transformer does not fit.
    """
    parts = open_parts(folder)
    return parts.configs["image"], parts.load("image", lambda x: x) if read else None


def make_image_reader(
    dit: DiTConfig, vae: LoadedVAE, config: ImageConfig | None, params: Any, dtype: Any
) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
    """From `frames`, and the `pixels` of an image encoder, to what the transformer sees of images.

    That are `image_latents` [B, T, h, w, C] and, with an encoder, `image_tokens` [B, M, D]: what a
    clip's own first frame, or first and last, would be given as in sampling.

    Args:
      dit: sizes of the transformer.
      vae: of its model.
      config, params: of the image encoder; None without one.
      dtype: that the VAE computes in.
    """

    def encode(frozen: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        (vae_params, mean, std), image_params = frozen
        latents = see_frames(dit, vae.config, vae_params, batch["frames"], mean, std, dtype)
        tokens = {}
        if config is not None:
            tokens["image_tokens"] = image_tokens(config, image_params, batch["pixels"])
        return {"image_latents": latents, **tokens}

    return _on_all_devices(encode, ((vae.params, vae.mean, vae.std), params))


def _on_all_devices(encode: Callable[[Any, Any], Any], frozen: Any) -> Callable[[Any], Any]:
    """`encode` compiled, with these parameters; the devices share a batch, which they divide."""
    mesh = make_mesh()
    frozen = jax.device_put(frozen, NamedSharding(mesh, PartitionSpec()))
    encode = jax.jit(encode)

    def run(batch: Any) -> Any:
        with jax.set_mesh(mesh):  # attention needs to know how its arrays are split
            placed = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim)), batch)
            return encode(frozen, placed)

    return run


class CaptionEncoder:
    """Text features of captions.

    Attributes:
      length: tokens at which captions are cut.
      width: channels of the features (D).
    """

    def __init__(self, text: TextParts, length: int, dtype: Any):
        self.length, self.width = length, text.config.width
        self._tokenizer = text.tokenizer
        encoder = TextEncoder(text.config, dtype)
        self._encode = _on_all_devices(lambda p, x: encoder.apply({"params": p}, x), text.params)

    def start(
        self, captions: Sequence[Mapping[str, str]], size: int
    ) -> tuple[np.ndarray, jax.Array]:
        """Tokens [size, kinds, L] and their features, before these are done.

        Args:
          captions: of each clip by kind, at most `size`.
          size: a multiple of the number of devices.
        """
        tokens = np.zeros((size, len(KINDS), self.length), np.int32)
        for row, clip in enumerate(captions):
            for column, kind in enumerate(KINDS):
                if clip.get(kind):
                    tokens[row, column] = self._tokenizer.encode(clip[kind], self.length)
        return tokens, self._encode(tokens.reshape(-1, self.length))

    def finish(self, tokens: np.ndarray, features: jax.Array) -> list[dict[str, np.ndarray]]:
        """Of each clip the features float16 [l, D] by kind, up to the caption's end."""
        counts = (tokens != 0).sum(axis=-1)
        features = np.asarray(features).reshape(*tokens.shape, self.width)
        return [
            {
                kind: to_half(rows[:count], "text encoder", "captions")
                for kind, rows, count in zip(KINDS, *row)
                if count
            }
            for row in zip(features, counts)
        ]

    def empty(self) -> np.ndarray:
        """Features float16 [l, D] of the empty caption."""
        tokens = np.zeros((jax.device_count(), self.length), np.int32)
        tokens[0] = self._tokenizer.encode("", self.length)
        features = np.asarray(self._encode(tokens))[0]
        return to_half(features[: np.count_nonzero(tokens[0])], "text encoder", "the empty caption")


def to_half(x: np.ndarray, network: str, of: str) -> np.ndarray:
    """float16 of what a network makes of something.

    Raises:
      ValueError: a number that is not finite in float16.
    """
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(
            f"the {network} makes numbers of {of} that float16 cannot hold: train it again, at a "
            "lower learning rate"
        )
    return half
