"""Makes a video or an image from a prompt, and from images or videos.

python sample.py --prompt="a red circle moves right" --output=video.mp4
python sample.py --prompt="a blue square" --output=image.png
python sample.py --prompt=TEXT --draft=96x64 --size=192x128 --output=large.mp4   # the same layout
python sample.py --prompt=TEXT --image=first.png --output=animated.mp4
python sample.py --prompt=TEXT --video=a.mp4 --extend=3 --output=longer.mp4       # -3: before it
python sample.py --prompt=TEXT --seconds=60 --output=minute.mp4         # in a rolling window
python sample.py --prompt=TEXT --loop --seconds=3 --output=loop.mp4     # without a seam
python sample.py --prompt=TEXT --video=a.mp4 --loop=1 --output=loop.mp4
python sample.py --prompt=TEXT --video=a.mp4 --edit=0.6 --output=edited.mp4
python sample.py --prompt=TEXT --then=TEXT --video=a.mp4 --video=b.mp4 --connect=1 --output=both.mp4
python sample.py --prompt=TEXT --keyframe=0:a.png --keyframe=2:b.png --output=between.mp4
"""

import dataclasses
import math
import os
import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags

import sora_jax
from sora_jax import command, video_io
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.prompting import check_enlarged

PROMPT = flags.DEFINE_string("prompt", None, "What to show.", required=True)
OUTPUT = flags.DEFINE_string("output", "video.mp4", "File to write: .mp4, .gif, .webp or .png.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Model folder, an open model's, or OWNER/NAME@COMMIT; the shipped model if left out.",
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "float16", "stored", "int8"],
    "Of the parameters in memory; stored: as in the files; int8: of most, bfloat16 of the rest.",
)
IN_TURN = flags.DEFINE_bool(
    "in_turn",
    False,
    "Keep only the network at work in memory: text encoder, transformer, VAE, each read when it "
    "is needed.",
)
LORA = flags.DEFINE_string(
    "lora",
    None,
    "File of adapters for the model, or a folder that has one, see docs/finetuning.md.",
)
LORA_LOW = flags.DEFINE_string(
    "lora_low", None, "The same for the second of two transformers, for low noise."
)
SIZE = flags.DEFINE_string("size", None, "WIDTHxHEIGHT in pixels.")
FRAMES = flags.DEFINE_integer("frames", None, "Number of frames, 1 + 4k.")
SECONDS = flags.DEFINE_float("seconds", None, "Duration, instead of --frames.")
FPS = flags.DEFINE_float(
    "fps", None, "Frame rate of the file; the model's if left out.", 0.01, 1000.0
)
DRAFT = flags.DEFINE_string(
    "draft", None, "WIDTHxHEIGHT to sample at first, and to enlarge to --size: the same layout."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise: the same seed makes the same video.")
STEPS = flags.DEFINE_integer("steps", None, "Steps of the solver.")
GUIDANCE = flags.DEFINE_float("guidance", None, "How strongly the prompt is followed.")
GUIDANCE_LOW = flags.DEFINE_float(
    "guidance_low", None, "The same of the second of two transformers, for low noise."
)
GIVEN_GUIDANCE = flags.DEFINE_float(
    "given_guidance", None, "How strongly given frames are followed; as the model says if left out."
)
GUIDANCE_INTERVAL = flags.DEFINE_list(
    "guidance_interval", None, "LOW,HIGH: shares of the way from clean to noise that are guided."
)
GUIDANCE_RESCALE = flags.DEFINE_float(
    "guidance_rescale", None, "How far the contrast that guidance adds is taken back, 0 to 1."
)
NEGATIVE = flags.DEFINE_string("negative", None, "What guidance leads away from.")
SOLVER = flags.DEFINE_enum("solver", None, sorted(SOLVERS), "The model's if left out.")
IMAGE = flags.DEFINE_string("image", None, "Image to animate: the first frame.")
VIDEO = flags.DEFINE_multi_string("video", [], "Video to extend, loop, edit; two to connect.")
EXTEND = flags.DEFINE_float("extend", None, "Seconds to add after the video; negative: before it.")
LOOP = flags.DEFINE_string(
    "loop",
    None,
    "Seconds that lead from the video's end to its beginning; alone: a loop from text.",
)
EDIT = flags.DEFINE_float("edit", None, "How much of the video is made anew, 0 to 1 (SDEdit).")
CONNECT = flags.DEFINE_float("connect", None, "Seconds between the first and the second video.")
THEN = flags.DEFINE_string("then", None, "What the second video shows, if not what --prompt says.")
KEYFRAME = flags.DEFINE_multi_string("keyframe", [], "SECONDS:FILE, an image at its time.")
HINT = flags.DEFINE_float("hint", None, "How far keyframes may be departed from, 0 to 1.")

OUT_OF_MEMORY = "out of memory: ask for a smaller --size or fewer --frames"
BEYOND_MEMORY = 2**36  # latent numbers that no machine holds: known without asking for them
FROM_TEXT = "text"  # what --loop alone stands for
ROLLED = 2  # videos longer than so many of the model's own are made in a rolling window
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def memory_hint():
    """What to do where a network that runs takes too much, but for what is done already."""
    ways = [OUT_OF_MEMORY]
    smaller = [] if DTYPE.value in ("bfloat16", "float16", "int8") else ["bfloat16"]
    if DTYPE.value != "int8" and LORA.value is None:  # adapters are not added to int8
        smaller.append("int8")
    if smaller:
        ways.append(f"hold parameters in --dtype={' or '.join(smaller)}")
    if not IN_TURN.value:
        ways.append("hold one network at a time, --in_turn")
    return "; ".join(ways)


def parse_size(flag, default):
    """(width, height) of a flag's WIDTHxHEIGHT."""
    if flag.value is None:
        return default
    parts = flag.value.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        example = f"{default[0]}x{default[1]}"
        raise ValueError(f"--{flag.name}={flag.value} is not WIDTHxHEIGHT, such as {example}")
    return int(parts[0]), int(parts[1])


def parse_guidance(default):
    """The guidance that the flags ask for; None if they ask for nothing."""
    changes = {
        "text": GUIDANCE.value,
        "text_low": GUIDANCE_LOW.value,
        "given": GIVEN_GUIDANCE.value,
        "rescale": GUIDANCE_RESCALE.value,
    }
    if GUIDANCE_INTERVAL.value is not None:
        try:
            changes["interval"] = tuple(float(share) for share in GUIDANCE_INTERVAL.value)
        except ValueError:
            given = ",".join(GUIDANCE_INTERVAL.value)
            raise ValueError(
                f"--guidance_interval={given} is not LOW,HIGH such as 0.1,0.9"
            ) from None
    changes = {name: value for name, value in changes.items() if value is not None}
    if "text" in changes:  # of both transformers, unless the second has its own
        changes.setdefault("text_low", None)
    return dataclasses.replace(default, **changes) if changes else None


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


def check_inputs():
    """What --video and its companions ask for: the name of one of them, or None.

    Raises:
      ValueError: flags that do not go together.
    """
    tasks = {"extend": EXTEND, "loop": LOOP, "edit": EDIT, "connect": CONNECT}
    asked = [name for name, flag in tasks.items() if flag.value is not None]
    asked += ["image"] * (IMAGE.value is not None) + ["keyframe"] * bool(KEYFRAME.value)
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} are two tasks; give one of them")
    task = asked[0] if asked else None
    if LOOP.value == FROM_TEXT:
        task = "text_loop"
    needed = {"connect": 2, "extend": 1, "loop": 1, "edit": 1}.get(task, 0)
    if len(VIDEO.value) != needed:
        raise ValueError(
            f"--{task} takes {needed} --video, not {len(VIDEO.value)}"
            if needed
            else "--video needs --extend, --loop, --edit or --connect, each with its number"
        )
    if GIVEN_GUIDANCE.value is not None and task in (None, "text_loop", "edit"):
        raise ValueError("--given_guidance is by frames that are kept, and none is; leave it out")
    if THEN.value is not None and task != "connect":
        raise ValueError("--then is what the second video of --connect shows; leave it out")
    if HINT.value is not None and task != "keyframe":
        raise ValueError("--hint is for the images of --keyframe; give one, or leave it out")
    if DRAFT.value is not None and task is not None:
        raise ValueError(f"--draft is of a prompt alone; leave it or --{task} out")
    if FPS.value is not None and not math.isfinite(FPS.value):
        raise ValueError(f"--fps={FPS.value} is no frame rate")
    if needed and (FRAMES.value is not None or SECONDS.value is not None):
        raise ValueError(f"--frames and --seconds have no use with --{task}; leave them out")
    if task == "text_loop" and FRAMES.value is not None:
        raise ValueError("a loop takes its duration from --seconds; leave --frames out")
    makes_video = needed or task == "text_loop"
    if makes_video and pathlib.Path(OUTPUT.value).suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{OUTPUT.value} holds one image, and --{task} makes a video")
    if task == "loop":
        parse_loop()
    return task


def parse_loop():
    """Seconds of --loop."""
    try:
        return float(LOOP.value)
    except ValueError:
        raise ValueError(f"--loop={LOOP.value} is no number of seconds, such as 1.5") from None


def read(path, info, model, size, *, image):
    """Frames of a probed file at the model's rate and the given size; says what it did to them."""
    if image and not info.is_image:
        raise ValueError(f"{path} is a video; give a png or jpg")
    if info.is_image and not image:
        raise ValueError(f"{path} is an image; give a video, or animate it with --image")
    frames = video_io.decode(path, fps=None if image else model.fps, size=size[::-1])
    done = []
    if (info.width, info.height) != size:
        done.append(f"{info.width}x{info.height} resized and cropped to {size[0]}x{size[1]}")
    if not image and abs(info.fps - model.fps) > 0.01:
        done.append(f"{info.fps:.4g} frames a second sampled at {model.fps:g}")
    if done:
        print(f"{path}: {', '.join(done)}")
    return frames


def parse_keyframes():
    """Times and files of --keyframe."""
    result = []
    for text in KEYFRAME.value:
        time, colon, path = text.partition(":")
        try:
            result.append((float(time), path))
        except ValueError:
            colon = ""
        if not colon or not path:
            raise ValueError(f"--keyframe={text} is not SECONDS:FILE, such as 1.5:image.png")
    if len({time for time, _ in result}) < len(result):
        raise ValueError("two --keyframe have the same time; move one of them")
    return result


def run():
    task = check_inputs()
    keyframes = parse_keyframes()
    model = sora_jax.load(
        CHECKPOINT.value,
        dtype=DTYPE.value,
        lora=LORA.value,
        lora_low=LORA_LOW.value,
        in_turn=IN_TURN.value,
    )
    images = [IMAGE.value] if IMAGE.value is not None else [path for _, path in keyframes]
    files = [*VIDEO.value, *images]
    probed = [video_io.probe(path) for path in files]
    size = model.settings.size
    if probed:
        size = model.fit_size(probed[0].width, probed[0].height)
    size = parse_size(SIZE, size)
    frames = model.settings.frames if task == "text_loop" else parse_frames(model)
    if math.prod(model.latent_shape(size, frames)) > BEYOND_MEMORY:
        raise ValueError(OUT_OF_MEMORY)
    inputs = [
        read(path, info, model, size, image=not VIDEO.value) for path, info in zip(files, probed)
    ]
    sampling = {
        "seed": SEED.value,
        "steps": STEPS.value,
        "guidance": parse_guidance(model.settings.guidance),
        "solver": SOLVER.value,
        "negative": NEGATIVE.value,
    }
    prompt, seconds = PROMPT.value, frames / model.fps
    long = frames > ROLLED * model.settings.frames
    if task is None and DRAFT.value is None and model.latent_frames > 2 and long:
        task = "long"
        print(f"{frames} frames are made in a window of {model.settings.frames} that rolls along")
    if DRAFT.value is not None:
        task, draft = "draft", parse_size(DRAFT, size)
        model.latent_shape(draft, frames)
        check_enlarged(model, draft, size)
        if long:
            raise ValueError(f"{frames} frames are too many to enlarge at once; ask for fewer")
    make = {
        None: lambda: model.sample(prompt, size=size, frames=frames, **sampling),
        "draft": lambda: sora_jax.enlarge(
            model,
            model.sample(prompt, size=draft, frames=frames, **sampling),
            prompt,
            size,
            **sampling,
        ),
        "image": lambda: sora_jax.animate(model, inputs[0][0], prompt, frames=frames, **sampling),
        "long": lambda: sora_jax.long_video(model, prompt, seconds, size=size, **sampling),
        "text_loop": lambda: sora_jax.endless_loop(
            model, prompt, SECONDS.value or seconds, size=size, **sampling
        ),
        "extend": lambda: sora_jax.extend(model, inputs[0], prompt, EXTEND.value, **sampling),
        "loop": lambda: sora_jax.loop(model, inputs[0], prompt, parse_loop(), **sampling),
        "edit": lambda: sora_jax.edit(model, inputs[0], prompt, EDIT.value, **sampling),
        "connect": lambda: sora_jax.connect(
            model,
            *inputs,
            prompt if THEN.value is None else (prompt, THEN.value),
            CONNECT.value,
            **sampling,
        ),
        "keyframe": lambda: sora_jax.from_keyframes(
            model,
            {time: image[0] for (time, _), image in zip(keyframes, inputs)},
            prompt,
            frames=frames,
            strength=HINT.value or 0.0,
            **sampling,
        ),
    }[task]
    # Before the work: a file that cannot be written is known now.
    writer = video_io.VideoWriter(OUTPUT.value, FPS.value or model.fps, size[1], size[0])
    start = time.perf_counter()
    made = make()
    written = 0
    with writer:
        for frames in [made] if isinstance(made, np.ndarray) else made:
            writer.write(frames)
            written += len(frames)
    taken = time.perf_counter() - start
    print(f"{OUTPUT.value}: {written} frames of {size[0]}x{size[1]}, made in {taken:.1f} s")


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
        command.fail(memory_hint())


def with_bare_loop(argv):
    """argv with a value for a --loop that has none, which absl's flags cannot express."""
    following = [*argv[1:], "--"]
    return [
        f"--loop={FROM_TEXT}" if one == "--loop" and after.startswith("--") else one
        for one, after in zip(argv, following)
    ]


if __name__ == "__main__":
    sys.argv = with_bare_loop(sys.argv)
    command.run(main)
