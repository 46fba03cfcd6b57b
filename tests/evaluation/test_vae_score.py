"""The scores of a VAE are those of what a user of the model would see."""

import json

import numpy as np
import pytest
from skimage import metrics

import sora_jax
from sora_jax.buckets import Bucket
from sora_jax.data.worlds.shapes import Shapes
from sora_jax.evaluation.vae_score import score_vae, sheet
from sora_jax.loading import PRETRAINED
from sora_jax.weights.parts import load_vae

BUCKETS = (Bucket(1, 32, 48), Bucket(5, 32, 32))


def test_scores_are_those_of_encoding_and_decoding(tmp_path):
    source = Shapes(6, BUCKETS, seed=3)
    table = score_vae(load_vae(PRETRAINED), source, BUCKETS, clips=4, folder=tmp_path / "made")

    model = sora_jax.load()
    expected: dict[str, list[float]] = {}
    for index in (0, 1, 3, 4):  # four of six, spread evenly
        bucket = Bucket(*map(int, source.shapes[index]))
        frames = source.read(index, bucket, np.random.default_rng(0))["frames"]
        made = np.concatenate(list(model.decode(model.encode(frames[None]))), axis=1)[0]
        score = metrics.peak_signal_noise_ratio(frames, made, data_range=255)
        expected.setdefault(str(bucket), []).append(score)
    assert len(expected) == 2
    for name, values in expected.items():
        assert table[name]["clips"] == len(values)
        assert table[name]["psnr"] == pytest.approx(np.mean(values), abs=0.1)
    assert table["all"]["clips"] == 4
    moving = table[str(BUCKETS[1])]["change"]
    assert 0.5 < moving < 3 and table["all"]["change"] == moving
    assert "change" not in table[str(BUCKETS[0])]
    every = [value for values in expected.values() for value in values]
    assert table["all"]["psnr"] == pytest.approx(np.mean(every), abs=0.1)
    assert json.loads((tmp_path / "made" / "reconstruction.json").read_text()) == table
    assert (tmp_path / "made" / "sheet.png").is_file()


def test_clips_that_fit_no_bucket_are_refused():
    with pytest.raises(ValueError, match="none of the 3 clips fits a bucket"):
        score_vae(load_vae(PRETRAINED), Shapes(3, BUCKETS[:1]), [Bucket(9, 64, 64)])


def test_a_sheet_shows_three_frames_of_each_clip_beside_what_was_made():
    video = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 3, 3), np.uint8)
    image = np.full((1, 4, 3, 3), 9, np.uint8)
    drawn = sheet([(video, video + 100), (image, image + 100)])
    assert drawn.shape == (2 + 4 + 4, 6 * 3, 3)
    assert drawn[0, ::3, 0].tolist() == [0, 100, 2, 102, 4, 104]
    assert drawn[6, :, 0].tolist() == [9] * 3 + [109] * 3 + [255] * 12
    assert (drawn[2:6] == 255).all()
