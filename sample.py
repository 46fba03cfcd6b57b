"""Makes a video or an image from a prompt.

python sample.py --prompt="a red circle moves right" --output=video.mp4
python sample.py --prompt="a blue square" --output=image.png
python sample.py --prompt="a red circle moves right" --image=first.png --output=video.mp4
"""

import os
import pathlib
import time

import jax
from absl import flags

import sora_jax
from sora_jax import command, video_io

PROMPT = flags.DEFINE_string("prompt", None, "What to show.", required=True)
OUTPUT = flags.DEFINE_string("output", "video.mp4", "File to write: .mp4, .gif, .webp or .png.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model folder; the shipped model if left out.")
SIZE = flags.DEFINE_string("size", None, "WIDTHxHEIGHT in pixels.")
FRAMES = flags.DEFINE_integer("frames", None, "Number of frames, 1 + 4k.")
SECONDS = flags.DEFINE_float("seconds", None, "Duration, instead of --frames.")
FPS = flags.DEFINE_float(
    "fps", None, "Frame rate of the file; the model's if left out.", 0.01, 1000.0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise: the same seed makes the same video.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver.")
GUIDANCE = flags.DEFINE_float("guidance", None, "How strongly the prompt is followed.")
IMAGE = flags.DEFINE_string("image", None, "Image to animate: the first frame.")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def parse_size(text, default):
    """(width, height) of WIDTHxHEIGHT."""
    if text is None:
        return default
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size={text} is not WIDTHxHEIGHT, such as {default[0]}x{default[1]}")
    return int(parts[0]), int(parts[1])


def parse_frames(model):
    """How many frames --frames, --seconds and the output's suffix ask for."""
    suffix = pathlib.Path(OUTPUT.value).suffix.lower()
    if FRAMES.value is not None and SECONDS.value is not None:
        raise ValueError("--frames and --seconds both give a duration; leave one out")
    if FRAMES.value is not None:
        frames = FRAMES.value
    elif SECONDS.value is not None:
        if not 0 <= SECONDS.value <= 24 * 3600:
            raise ValueError(f"--seconds={SECONDS.value} is out of range; use 0 to 86400")
        stride = model.vae_config.temporal_stride
        frames = 1 + stride * round((SECONDS.value * model.fps - 1) / stride)
        frames = max(frames, 1)
    else:
        frames = 1 if suffix in IMAGE_SUFFIXES else model.settings.frames
    if suffix in IMAGE_SUFFIXES and frames != 1:
        raise ValueError(f"{OUTPUT.value} holds one image, not {frames} frames; write an .mp4")
    return frames


def run():
    model = sora_jax.load(CHECKPOINT.value)
    size = parse_size(SIZE.value, model.settings.size)
    frames = parse_frames(model)
    model.latent_shape(size, frames)
    # Before the work: a file that cannot be written is known now.
    writer = video_io.VideoWriter(OUTPUT.value, FPS.value or model.fps, size[1], size[0])
    image = None
    if IMAGE.value:
        info = video_io.probe(IMAGE.value)
        if not info.is_image:
            raise ValueError(f"--image={IMAGE.value} is a video; give a png or jpg")
        if (info.width, info.height) != size:
            print(f"{IMAGE.value}: {info.width}x{info.height}, resized and cropped to {size}")
        image = video_io.decode(IMAGE.value, frames=1, size=size[::-1])[0]
    start = time.perf_counter()
    clip = model.sample(
        PROMPT.value,
        size=size,
        frames=frames,
        seed=SEED.value,
        steps=STEPS.value,
        guidance=GUIDANCE.value,
        image=image,
    )
    with writer:
        writer.write(clip)
    seconds = time.perf_counter() - start
    print(f"{OUTPUT.value}: {frames} frames of {size[0]}x{size[1]}, made in {seconds:.1f} s")


def main(argv):
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(cache / "sora_jax"))
    try:
        run()
    except (ValueError, OSError) as error:
        command.fail(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        command.fail("out of memory: ask for a smaller --size or fewer --frames")


if __name__ == "__main__":
    command.run(main)
