"""What holding a model in less costs and saves.

python -m benchmarks.dtypes video
    PSNR of what the shipped model makes in each dtype against float32, from the same noise
python -m benchmarks.dtypes memory FOLDER DTYPE
    resident memory of this process (Linux) while the parts of an open model are read in turn
"""

import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np

import sora_jax
from sora_jax.host_memory import resident_memory
from sora_jax.models.pixels import to_uint8
from sora_jax.models.vae import VAE, denormalise
from sora_jax.pipeline import Model

PROMPTS = [
    "a red circle moves right across a white background",
    "a large green triangle moves left across a black background",
]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    square = np.mean((one.astype(np.float64) - other) ** 2)
    return 10 * float(np.log10(255**2 / square)) if square else np.inf


def size(params: object) -> float:
    """GiB."""
    return sum(x.nbytes for x in jax.tree.leaves(params)) / 2**30


def video() -> None:
    whole = sora_jax.load()
    latents = whole.sample_latents(PROMPTS, seed=3)
    clips = whole.to_frames(latents)
    for dtype in ("bfloat16", "int8", "float16"):
        model = sora_jax.load(dtype=dtype)
        saved = size(model.params["dit"]) / size(whole.params["dit"])
        made = whole.to_frames(model.sample_latents(PROMPTS, seed=3))
        print(f"{dtype}: transformer {saved:.2f} of float32, video {psnr(made, clips):.1f} dB")
    for held, computed in (("bfloat16", "float32"), ("float32", "bfloat16")):
        print(f"VAE held in {held}, computing in {computed}:", end=" ")
        print(f"{psnr(decode(whole, latents, held, computed), clips):.1f} dB")


def decode(model: Model, latents: jax.Array, held: str, computed: str) -> np.ndarray:
    """Frames by a VAE in these dtypes."""
    params = jax.tree.map(lambda x: x.astype(held), model.params["vae"])
    z = denormalise(latents, model.latent_mean, model.latent_std)
    vae = VAE(model.vae_config, jnp.dtype(computed))
    return np.asarray(to_uint8(vae.apply({"params": params}, z, method="decode")[0]))


def memory(folder: str, dtype: str) -> None:
    model, peak = sora_jax.load(folder, dtype=dtype, in_turn=True), [0.0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], resident())
            time.sleep(0.05)

    print(f"before: {resident():.2f} GiB resident")
    threading.Thread(target=watch, daemon=True).start()
    for part in ("text", "dit", "vae"):
        start, peak[0] = time.perf_counter(), 0.0
        held = size(model.params[part])
        print(
            f"{part}: {held:.2f} GiB, {resident():.2f} resident after reading, at most "
            f"{peak[0]:.2f}; {time.perf_counter() - start:.0f} s",
            flush=True,
        )


def resident() -> float:
    """GiB."""
    return resident_memory() / 2**30


if __name__ == "__main__":
    {"video": video, "memory": memory}[sys.argv[1]](*sys.argv[2:])
