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

import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
from absl import flags

import sora_jax
from sora_jax import command, video_io
from sora_jax import sample_flags as asked
from sora_jax.progress import Progress
from sora_jax.prompting import check_enlarged

flags.adopt_module_key_flags(asked)  # so that --help lists them

ROLLED = 2  # videos longer than so many of the model's own are made in a rolling window


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


def check_memory(model, size, frames):
    """Refuses what the machine cannot hold: asked for it, the kernel ends this process or others.

    Counted is what nothing can do without: the frames as they are made and as they are returned,
    and what one layer of the transformer has of each token, in bfloat16.
    """
    dit = model.dit_config
    tokens = math.prod(dit.grid(model.latent_shape(size, frames)[:3]))
    needed = 2 * 3 * frames * math.prod(size) + 2 * tokens * (dit.mlp_width + 2 * dit.width)
    if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ValueError(asked.OUT_OF_MEMORY)


def write(make, fps, size, frames):
    """Writes what make() gives, all or so many frames piece by piece, and says how long it took."""
    # Before the work: a file that cannot be written is known now.
    writer = video_io.VideoWriter(asked.OUTPUT.value, fps, size[1], size[0])
    start = time.perf_counter()
    made = make()
    written = 0
    with writer:
        pieces = isinstance(made, Iterator)
        with Progress("made", "frame", frames, shown=pieces) as progress:
            for piece in made if pieces else [made]:
                writer.write(piece)
                written += len(piece)
                progress.advance(len(piece))
    taken = time.perf_counter() - start
    what = "1 frame" if written == 1 else f"{written} frames"
    print(f"{asked.OUTPUT.value}: {what} of {size[0]}x{size[1]}, made in {taken:.1f} s")


def run():
    task = asked.check_inputs()
    keyframes = asked.parse_keyframes()
    model = sora_jax.load(
        asked.CHECKPOINT.value,
        dtype=asked.DTYPE.value,
        lora=asked.LORA.value,
        lora_low=asked.LORA_LOW.value,
        in_turn=asked.IN_TURN.value,
    )
    images = [path for _, path in keyframes] if asked.IMAGE.value is None else [asked.IMAGE.value]
    files = [*asked.VIDEO.value, *images]
    probed = [video_io.probe(path) for path in files]
    size = model.settings.size
    if probed:
        size = model.fit_size(probed[0].width, probed[0].height)
    size = asked.parse_size(asked.SIZE, size)
    frames = model.settings.frames if task == "text_loop" else asked.parse_frames(model)
    model.latent_shape(size, frames)
    long = frames > ROLLED * model.settings.frames
    check_memory(model, size, model.settings.frames if long else frames)
    inputs = [
        read(path, info, model, size, image=not asked.VIDEO.value)
        for path, info in zip(files, probed)
    ]
    sampling = {
        "seed": asked.SEED.value,
        "steps": asked.STEPS.value,
        "guidance": asked.parse_guidance(model.settings.guidance),
        "solver": asked.SOLVER.value,
        "negative": asked.NEGATIVE.value,
    }
    prompt, seconds = asked.PROMPT.value, frames / model.fps
    if task == "text_loop" and asked.SECONDS.value is not None:
        seconds = asked.SECONDS.value
    if task is None and asked.DRAFT.value is None and model.latent_frames > 2 and long:
        task = "long"
        print(f"{frames} frames are made in a window of {model.settings.frames} that rolls along")
    if asked.DRAFT.value is not None:
        task, draft = "draft", asked.parse_size(asked.DRAFT, size)
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
        "text_loop": lambda: sora_jax.endless_loop(model, prompt, seconds, size=size, **sampling),
        "extend": lambda: sora_jax.extend(model, inputs[0], prompt, asked.EXTEND.value, **sampling),
        "loop": lambda: sora_jax.loop(model, inputs[0], prompt, asked.parse_loop(), **sampling),
        "edit": lambda: sora_jax.edit(model, inputs[0], prompt, asked.EDIT.value, **sampling),
        "connect": lambda: sora_jax.connect(
            model,
            *inputs,
            prompt if asked.THEN.value is None else (prompt, asked.THEN.value),
            asked.CONNECT.value,
            **sampling,
        ),
        "keyframe": lambda: sora_jax.from_keyframes(
            model,
            {time: image[0] for (time, _), image in zip(keyframes, inputs)},
            prompt,
            frames=frames,
            strength=asked.HINT.value or 0.0,
            **sampling,
        ),
    }[task]
    write(make, asked.FPS.value or model.fps, size, frames)


def main(argv):
    if len(argv) > 1:
        command.fail(f"{argv[1]!r} belongs to no flag")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(cache / "sora_jax"))
    try:
        run()
    except (ValueError, OSError) as error:
        command.fail(error)
    except MemoryError:
        command.fail(asked.memory_hint())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        command.fail(asked.memory_hint())


if __name__ == "__main__":
    sys.argv = asked.with_bare_loop(sys.argv)
    command.run(main)
