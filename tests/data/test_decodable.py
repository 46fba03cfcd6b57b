"""One odd file costs a dataset that file and no more."""

import numpy as np

from sora_jax import video_io
from sora_jax.data.captions import Clip, Report
from sora_jax.data.decodable import check_clips


def test_whatever_a_decoder_raises_is_the_reason_of_that_clip(tmp_path, monkeypatch):
    clips = [Clip(name, tmp_path / name) for name in ("odd.png", "good.png")]
    for clip in clips:
        video_io.write(clip.path, np.zeros((1, 16, 16, 3), np.uint8))
    probe = video_io.probe

    def odd(path):
        return {}["rate"] if path.name == "odd.png" else probe(path)

    monkeypatch.setattr(video_io, "probe", odd)
    report = Report()
    usable = check_clips(clips, 1, report)
    assert [each.clip.file_name for each in usable] == ["good.png"]
    assert report.skipped == [("odd.png", "KeyError: 'rate'")]
