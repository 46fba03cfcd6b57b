"""`sample.py` as a user gives it: what it is given as files, and what it writes."""

import numpy as np

from sora_jax import video_io
from tests.commands import succeed
from tests.tiny_model import write_model


def test_sample_goes_on_from_a_file(tmp_path):
    """An image of another size is animated, the video then extended and edited."""
    model = write_model(tmp_path / "model", frames=17)
    image, video = tmp_path / "a.png", tmp_path / "a.mp4"
    video_io.write(image, np.random.default_rng(0).integers(0, 256, (1, 40, 80, 3), np.uint8))
    sample = ["sample.py", f"--checkpoint={model}", "--prompt=a red circle"]
    succeed(*sample, f"--image={image}", f"--output={video}", "--frames=9")
    info = video_io.probe(video)
    assert (info.frames, info.width, info.height) == (9, 32, 16)
    longer = tmp_path / "longer.mp4"
    succeed(*sample, f"--video={video}", "--extend=1", "--given_guidance=2", f"--output={longer}")
    assert video_io.probe(longer).frames == 9 + 8
    looped = tmp_path / "looped.mp4"
    succeed(*sample, "--loop", "--seconds=2", f"--output={looped}")
    assert video_io.probe(looped).frames == 16
    long = tmp_path / "long.mp4"
    succeed(*sample, "--seconds=6", f"--output={long}")
    assert video_io.probe(long).frames == 49
    edited = tmp_path / "edited.mp4"
    succeed(*sample, f"--video={longer}", "--edit=0.5", f"--output={edited}", "--size=16x16")
    info = video_io.probe(edited)
    assert (info.frames, info.width, info.height) == (17, 16, 16)
    large = tmp_path / "large.png"
    guided = ["--guidance_interval=0.2,0.9", "--guidance_rescale=0.5"]
    succeed(*sample, *guided, f"--output={large}", "--draft=32x16", "--size=80x40")
    info = video_io.probe(large)
    assert (info.width, info.height) == (80, 40)
