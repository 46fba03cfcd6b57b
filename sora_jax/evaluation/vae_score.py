"""How well does a VAE reconstruct clips that it never saw? Scores, and a sheet to look at."""

import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.buckets import Bucket, assign_all
from sora_jax.data.source import ClipSource
from sora_jax.evaluation.reconstruction import change, psnr, ssim
from sora_jax.models.pixels import to_float, to_uint8
from sora_jax.models.vae import VAE
from sora_jax.video_io import write
from sora_jax.weights.parts import LoadedVAE

SHEET_ROWS = 8


def score_vae(
    vae: LoadedVAE,
    source: ClipSource,
    buckets: Sequence[Bucket],
    *,
    clips: int = 64,
    folder: pathlib.Path | None = None,
) -> dict[str, dict[str, float]]:
    """Means over held-out clips, decoded from the posterior's mean.

    Args:
      vae: the network.
      source: clips, of which each is read at its bucket's shape, at one fixed crop and start.
      buckets: the shapes.
      clips: how many at most, spread over the source.
      folder: gets sheet.png, originals beside reconstructions, and the scores as json.

    Returns:
      For each bucket that has clips, and for "all" of them: `clips`, `psnr` (dB), `ssim`, and of
      clips that move `change`, from frame to frame over that of the originals.

    Raises:
      ValueError: no clip fits a bucket.
    """

    @jax.jit
    def reconstruct(params, frames):
        x = to_float(frames)
        noise = jnp.zeros((1, *vae.config.latent_shape(*frames.shape[1:4])))
        y = jnp.clip(VAE(vae.config).apply({"params": params}, x, noise)[0], -1.0, 1.0)
        return to_uint8(y), psnr(x, y), ssim(x, y), change(x, y)

    choice = assign_all(buckets, source.shapes).choice
    usable = np.flatnonzero(choice >= 0)
    if not len(usable):
        raise ValueError(f"none of the {len(source)} clips fits a bucket; change the buckets")
    count = min(clips, len(usable))
    scores: dict[str, list[tuple[float, ...]]] = {}
    pairs = []
    for number, index in enumerate(usable[np.arange(count) * len(usable) // count]):
        bucket = buckets[choice[index]]
        clip = source.read(int(index), bucket, np.random.default_rng((0, int(index))))
        frames, *score = reconstruct(vae.params, clip["frames"][None])
        scores.setdefault(str(bucket), []).append(tuple(float(s[0]) for s in score))
        if number * SHEET_ROWS // count > (number - 1) * SHEET_ROWS // count:
            pairs.append((clip["frames"], np.asarray(frames[0])))
    everything = [score for some in scores.values() for score in some]
    table = {
        name: {"clips": len(some), **_means(some)}
        for name, some in {**dict(sorted(scores.items())), "all": everything}.items()
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "sheet.png", sheet(pairs)[None], fps=vae.fps)
        (folder / "reconstruction.json").write_text(json.dumps(table, indent=2) + "\n")
    return table


def _means(scores: Sequence[tuple[float, ...]]) -> dict[str, float]:
    columns = dict(zip(("psnr", "ssim", "change"), np.array(scores).T))
    moving = {"change": columns["change"][np.isfinite(columns["change"])]}
    return {name: float(x.mean()) for name, x in (columns | moving).items() if len(x)}


def sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """A row for each clip: first, middle and last frame, each original beside its reconstruction.

    Args:
      pairs: (original, reconstruction), each uint8 [F, H, W, 3].

    Returns:
      uint8 [height, width, 3], white where a clip is smaller than the largest.
    """
    rows = []
    for original, made in pairs:
        shown = sorted({0, len(original) // 2, len(original) - 1})
        columns = [clip[i] for i in shown for clip in (original, made)]
        rows.append(np.concatenate(columns, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    return np.concatenate(padded)[:-4]
