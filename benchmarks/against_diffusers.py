"""Speed beside diffusers: python -m benchmarks.against_diffusers [--rows=ROW,ROW] [--repeats=5]

Each row runs in a process here and in one of diffusers, in turns, float32, on all processors that
the process may use; only ratios carry over to other machines. Medians, with the lowest times in
brackets; below them the rate of the matrix product in the same processes, and the most memory. The
sizes are those of `benchmarks.dit`, `vae`, `text` and `sampler`; --small takes tiny ones, to try.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import sys
from typing import Any

import sora_jax
from benchmarks import dit, text, timing, vae
from benchmarks.turns import MATMUL, MEMORY, Worker, take_turns
from sora_jax.models.dit_config import DiTConfig
from sora_jax.models.text import TextConfig
from sora_jax.models.vae import VAEConfig
from sora_jax.weights import pipeline_config

NEEDED = ("torch", "diffusers", "transformers")
ROWS = (
    *("dit forward", "dit train"),
    *("vae encode 32", "vae decode 32", "vae encode 96", "vae decode 96"),
    *("text", "sampling"),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is computed: networks, and shapes of what goes in.

    Attributes:
      transformer, latents, words: the network, its [T, h, w, C] and tokens of text.
      frames, side, narrower: the clip for the VAE, and what its base width is divided by.
      encoder, text_words: the text encoder, and tokens that it reads.
      steps: of the sampler.
      matmul: rows of the matrices that are multiplied.
    """

    transformer: DiTConfig = dit.CONFIG
    latents: tuple[int, ...] = dit.SHAPE
    words: int = dit.WORDS
    frames: int = vae.FRAMES
    side: int = vae.SIDE
    narrower: int = 1
    encoder: TextConfig = text.CONFIG
    text_words: int = text.WORDS
    steps: int = 20
    matmul: int = timing.SIZE


SMALL = Sizes(
    transformer=DiTConfig(48, 2, 2, 64, 4, (1, 2, 2), 16, 16),
    latents=(2, 4, 4, 4),
    words=8,
    frames=5,
    side=16,
    narrower=16,
    encoder=TextConfig(100, 16, 1, 2, 8, 32),
    text_words=8,
    steps=2,
    matmul=64,
)


def describe(row: str, small: bool) -> dict[str, Any]:
    """What `benchmarks.peer` makes its calls of."""
    sizes = SMALL if small else Sizes()
    kind, *rest = row.split()
    frames, height, width, channels = sizes.latents
    config: dict[str, Any]
    words = sizes.words
    if kind == "dit":
        config = pipeline_config.dit_config(sizes.transformer)
        shape = (dit.BATCH, channels, frames, height, width)
    elif kind == "vae":
        base = int(rest[1]) // sizes.narrower
        each = VAEConfig(encoder_width=base, decoder_width=base)
        mean, std = [0.0] * each.latent_channels, [1.0] * each.latent_channels
        config = pipeline_config.vae_config(each, mean, std)
        t, h, w, c = each.latent_shape(sizes.frames, sizes.side, sizes.side)
        encode = rest[0] == "encode"
        shape = (1, 3, sizes.frames, sizes.side, sizes.side) if encode else (1, c, t, h, w)
    elif kind == "text":
        config, shape = pipeline_config.text_config(sizes.encoder), (text.BATCH, sizes.text_words)
    else:
        # As here: the text of the model that ships, and one clip.
        model = sora_jax.load()
        network = dataclasses.replace(sizes.transformer, text_width=model.text_config.width)
        config, words = pipeline_config.dit_config(network), model.settings.text_length
        shape = (1, channels, frames, height, width)
    return {
        "kind": row,
        "config": config,
        "shape": shape,
        "words": words,
        "steps": sizes.steps,
        "side": sizes.matmul,
    }


def compare(row: str, repeats: int, small: bool) -> None:
    """Measures one row and prints it."""
    names = ["work", "bare"] if row == "sampling" else ["work"]
    with (
        Worker("benchmarks.peer", describe(row, small)) as peer,
        Worker("benchmarks.own", {"row": row, "small": small}) as own,
    ):
        theirs, ours = take_turns((peer, own), names, repeats)
        memory = [worker.ask(MEMORY) / 2**30 for worker in (own, peer)]
    if row == "sampling":
        over = [
            100 * (statistics.median(a / b for a, b in zip(x["work"], x["bare"])) - 1)
            for x in (ours, theirs)
        ]
        least = [100 * (min(x["work"]) / min(x["bare"]) - 1) for x in (ours, theirs)]
        columns = [f"{a:+.2f} % ({b:+.2f} %)" for a, b in zip(over, least)]
    else:
        columns = [
            f"{statistics.median(x['work']):.4f} s ({min(x['work']):.4f})" for x in (ours, theirs)
        ]
    ratio, lowest = (f(ours["work"]) / f(theirs["work"]) for f in (statistics.median, min))
    columns.append(f"{ratio:.2f} ({lowest:.2f})")
    side = (SMALL if small else Sizes()).matmul
    rates = [3 * 2 * side**3 / statistics.median(x[MATMUL]) / 1e9 for x in (ours, theirs)]
    print(f"{row:>16}" + "".join(f"{column:>24}" for column in columns), flush=True)
    columns = [f"{rate:.0f} GFLOP/s {most:.2f} GiB" for rate, most in zip(rates, memory)]
    print(f"{'':>16}" + "".join(f"{column:>24}" for column in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    values = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not installed: pip install {' '.join(NEEDED)}")
    unknown = sorted(set(values.rows.split(",")) - set(ROWS))
    if unknown:
        sys.exit(f"error: {unknown} are no rows; there are {', '.join(map(repr, ROWS))}")
    if values.repeats < 1:
        sys.exit(f"error: {values.repeats} repeats measure nothing; use at least 1, such as 5")
    print(f"{'':>16}{'here':>24}{'diffusers':>24}{'here / diffusers':>24}", flush=True)
    for row in values.rows.split(","):
        compare(row, values.repeats, values.small)


if __name__ == "__main__":
    main()
