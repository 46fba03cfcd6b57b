"""The flags of sample.py: what they are, and what they ask for, or that it makes no sense.

Only sample.py imports this, because other commands have flags of the same names.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

from absl import flags

from sora_jax.diffusion.guidance import Guidance
from sora_jax.diffusion.solvers import SOLVERS
from sora_jax.pipeline import Model
from sora_jax.weights.lora_folder import find_adapted
from sora_jax.weights.model_folder import find_model

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
FROM_TEXT = "text"  # what --loop alone stands for
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def memory_hint() -> str:
    """What to do where a network that runs takes too much, but for what is done already."""
    ways = [OUT_OF_MEMORY]
    smaller = [] if DTYPE.value in ("bfloat16", "float16", "int8") else ["bfloat16"]
    if DTYPE.value != "int8" and not _has_adapters():  # which are not added to int8
        smaller.append("int8")
    if smaller:
        ways.append(f"hold parameters in --dtype={' or '.join(smaller)}")
    if not IN_TURN.value:
        ways.append("hold one network at a time, --in_turn")
    return "; ".join(ways)


def _has_adapters() -> bool:
    """Whether adapters are given, or the checkpoint is that of a LoRA run."""
    if LORA.value is not None or LORA_LOW.value is not None:
        return True
    return CHECKPOINT.value is not None and find_adapted(find_model(CHECKPOINT.value)) is not None


def parse_size(flag: flags.FlagHolder, default: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a flag's WIDTHxHEIGHT."""
    if flag.value is None:
        return default
    parts = flag.value.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        example = f"{default[0]}x{default[1]}"
        raise ValueError(f"--{flag.name}={flag.value} is not WIDTHxHEIGHT, such as {example}")
    return int(parts[0]), int(parts[1])


def parse_guidance(default: Guidance) -> Guidance | None:
    """The guidance that the flags ask for; None if they ask for nothing."""
    changes = {
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
    if GUIDANCE.value is not None:
        default = default.with_text(GUIDANCE.value)
    elif not changes:
        return None
    return dataclasses.replace(default, **changes)


def parse_frames(model: Model) -> int:
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


def check_inputs() -> str | None:
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


def parse_loop() -> float:
    """Seconds of --loop."""
    try:
        return float(LOOP.value)
    except ValueError:
        raise ValueError(f"--loop={LOOP.value} is no number of seconds, such as 1.5") from None


def parse_keyframes() -> list[tuple[float, str]]:
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


def with_bare_loop(argv: Sequence[str]) -> list[str]:
    """argv with a value for a --loop that has none, which absl's flags cannot express."""
    following = [*argv[1:], "--"]
    return [
        f"--loop={FROM_TEXT}" if one == "--loop" and after.startswith("--") else one
        for one, after in zip(argv, following)
    ]
