"""The loader: one bucket a batch, the same on any number of hosts, exact resume, nothing lost."""

import collections
import itertools

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sora_jax.buckets import Bucket
from sora_jax.data.loader import make_loader

IMAGE, WIDE, TALL = Bucket(1, 16, 32), Bucket(5, 16, 32), Bucket(5, 32, 16)
BUCKETS = (IMAGE, WIDE, TALL)
BATCH = {IMAGE: 8, WIDE: 4, TALL: 4}


class FakeClips:
    """Clips whose pixels tell which clip they are (channel 0) and what was drawn (channel 1)."""

    fps = 8.0

    def __init__(self, counts, broken=(), captions=None):
        self.shapes = np.concatenate(
            [
                np.tile((bucket.frames, bucket.height, bucket.width), (count, 1))
                for bucket, count in zip(BUCKETS, counts)
            ]
        ).astype(np.int32)
        self.broken = set(broken)
        self.captions = captions or {"short": "s", "detailed": "d"}

    def __len__(self):
        return len(self.shapes)

    def read(self, index, bucket, rng):
        drawn = rng.integers(256)
        if index in self.broken:
            raise OSError(f"damaged bytes in clip {index}")
        frames = np.zeros((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
        frames[..., 0], frames[..., 1] = index, drawn
        return {"frames": frames, "captions": self.captions}


def letters(caption):
    """The characters, up to 8."""
    return np.array([ord(letter) for letter in caption.ljust(8)[:8]])


def load(source, **changes):
    options = {
        "batch_size": BATCH.get,
        "tokenize": letters,
        "caption_weights": {"short": 0.3, "detailed": 0.7},
        "caption_dropout": 0.1,
        "seed": 3,
        "prefetch": 2,
    }
    return make_loader(source, BUCKETS, **{**options, **changes})


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def clips_of(batch):
    return batch["frames"][:, 0, 0, 0, 0].tolist()


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_hold_one_bucket_at_its_batch_size():
    shapes = collections.Counter()
    for batch in take(load(FakeClips((16, 8, 12))), 14):
        assert batch["frames"].dtype == np.uint8 and batch["tokens"].dtype == np.int32
        count, *shape, channels = batch["frames"].shape
        bucket = Bucket(*shape)
        assert count == BATCH[bucket] and channels == 3
        assert batch["tokens"].shape == (count, 8)
        shapes[bucket] += 1
    # Two epochs of 16 / 8, 8 / 4 and 12 / 4 steps.
    assert shapes == {IMAGE: 4, WIDE: 4, TALL: 6}


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_take_the_same_bucket_and_share_its_batch(count):
    source = FakeClips((11, 6, 3), broken=[2])
    alone = take(load(source), 12)
    hosts = [take(load(source, parts=[host], part_count=count), 12) for host in range(count)]
    for whole, *parts in zip(alone, *hosts):
        assert len({part["frames"].shape for part in parts}) == 1
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))


def test_a_host_may_take_several_parts_that_do_not_touch():
    source = FakeClips((11, 6, 3))
    alone = take(load(source), 12)
    for whole, mine in zip(alone, take(load(source, parts=[0, 3], part_count=4), 12)):
        for name, x in whole.items():
            first, *_, last = np.split(x, 4)
            np.testing.assert_array_equal(mine[name], np.concatenate([first, last]))


def test_each_epoch_holds_every_clip_once_in_a_new_order():
    source = FakeClips((16, 8, 12))
    batches = take(load(source), 14)
    first = [clip for batch in batches[:7] for clip in clips_of(batch)]
    second = [clip for batch in batches[7:] for clip in clips_of(batch)]
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second and first != sorted(first)


def test_clips_that_fill_no_batch_are_seen_as_often_as_the_others():
    # 3 wide clips fill batches of 4 only by repeating; 11 images leave 3 over each epoch.
    seen = collections.Counter()
    for batch in take(load(FakeClips((11, 3, 4))), 200):
        seen.update(clips_of(batch))
    mean = sum(seen.values()) / len(seen)
    assert len(seen) == 18
    assert all(abs(count - mean) <= 8 for count in seen.values()), seen


def test_random_draws_differ_between_clips_and_epochs():
    batches = take(load(FakeClips((0, 8, 0))), 4)
    drawn = np.concatenate([batch["frames"][:, 0, 0, 0, 1] for batch in batches])
    assert len(set(drawn.tolist())) > 10


def test_the_seed_decides():
    source = FakeClips((16, 8, 12))
    assert_same(take(load(source), 5), take(load(source), 5))
    first, second = (take(load(source, seed=seed), 5) for seed in (3, 4))
    assert [clips_of(batch) for batch in first] != [clips_of(batch) for batch in second]
    first, second = (take(load(source, seed=seed, shuffle=False), 5) for seed in (3, 4))
    assert [clips_of(batch) for batch in first] == [clips_of(batch) for batch in second]
    assert any((one["frames"] != two["frames"]).any() for one, two in zip(first, second))


@pytest.mark.parametrize("done", [0, 2, 4, 7, 9])
def test_resuming_is_exact_within_and_across_epochs(done):
    source = FakeClips((11, 6, 3))  # 11/8 + 6/4 + 3/4 steps an epoch
    uninterrupted = take(load(source), 14)
    before = load(source)
    for _ in range(done):
        next(before)
    state = before.get_state()
    before.close()
    after = load(source)
    next(after)  # a position of its own, to be left
    after.set_state(state)
    assert after.get_state() == state
    assert_same(take(after, 14 - done), uninterrupted[done:])


def test_resuming_through_orbax_is_exact(tmp_path):
    source = FakeClips((11, 6, 3))
    loader = load(source)
    for _ in range(5):
        next(loader)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(
            5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(loader.iterator))
        )
        manager.wait_until_finished()
        resumed = load(source)
        manager.restore(
            5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed.iterator))
        )
    assert_same(take(resumed, 5), take(loader, 5))


def test_worker_processes_give_the_same_batches_and_resume_where_threads_stopped():
    source = FakeClips((11, 6, 3), broken=[2])
    threads = load(source)
    expected = list(itertools.islice(threads, 4))
    state = threads.get_state()
    expected += take(threads, 6)
    processes = load(source, workers=2)
    processes.set_state(state)
    assert_same(list(itertools.islice(processes, 6)), expected[4:])
    assert processes.get_state()["step"] == 10
    assert set(processes.iterator.failures) == {2}, "reported by the process that reads"
    processes.close()


def test_resuming_with_other_data_is_reported(caplog):
    state = load(FakeClips((16, 8, 12))).get_state()
    load(FakeClips((16, 8, 12))).set_state(state)
    assert "not those of the checkpoint" not in caplog.text
    load(FakeClips((16, 8, 13))).set_state(state)
    assert "not those of the checkpoint" in caplog.text


def test_evaluation_goes_through_every_clip_in_order():
    options = {"epochs": 1, "shuffle": False, "caption_dropout": 0.0}
    loader = load(FakeClips((16, 8, 12)), **options)
    assert loader.report.steps_per_epoch == 7
    batches = take(loader, None)
    clips = [clip for batch in batches for clip in clips_of(batch)]
    assert sorted(clips) == list(range(36))
    for bucket in (range(16), range(16, 24), range(24, 36)):
        assert [clip for clip in clips if clip in bucket] == list(bucket)
    assert_same(batches, take(load(FakeClips((16, 8, 12)), **options), None))


def test_the_last_batch_of_a_finite_run_is_filled_with_clips_seen_again():
    batches = take(load(FakeClips((11, 1, 6)), epochs=1, shuffle=False), None)
    assert sorted(len(clips_of(batch)) for batch in batches) == [4, 4, 4, 8, 8]
    clips = collections.Counter(clip for batch in batches for clip in clips_of(batch))
    assert set(clips) == set(range(18))
    assert clips[11] == 4 and sum(clips.values()) == 28


def test_captions_follow_their_weights_and_the_dropout():
    batches = take(load(FakeClips((0, 40, 0)), caption_dropout=0.2), 250)
    first = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    shares = {letter: np.mean(first == ord(letter)) for letter in "sd "}
    np.testing.assert_allclose(
        [shares["s"], shares["d"], shares[" "]], [0.24, 0.56, 0.2], atol=0.05
    )


def test_only_kinds_that_a_clip_has_are_chosen(caplog):
    source = FakeClips((0, 8, 0), captions={"short": "s", "detailed": ""})
    batches = take(load(source, caption_dropout=0.0), 4)
    assert all((batch["tokens"][:, 0] == ord("s")).all() for batch in batches)
    loader = load(source, caption_weights={"detailed": 1.0, "short": 0.0})
    assert (next(loader)["tokens"] == ord(" ")).all()
    assert loader.iterator.uncaptioned == 4
    loader.close()
    assert "no caption" in caplog.text


def test_latents_are_batched_as_the_source_gives_them():
    source = FakeClips((0, 8, 0))
    source.read = lambda index, bucket, rng: {
        "latents": np.full((2, 2, 4, 16), index, np.float32),
        "captions": {"short": "s"},
    }
    (batch,) = take(load(source), 1)
    assert batch.keys() == {"latents", "tokens"}
    assert batch["latents"].shape == (4, 2, 2, 4, 16) and batch["latents"].dtype == np.float32


def test_without_a_tokenizer_there_are_no_tokens():
    (batch,) = take(load(FakeClips((0, 8, 0)), tokenize=None, caption_weights=None), 1)
    assert batch.keys() == {"frames"}


def test_a_clip_that_cannot_be_read_is_replaced_within_its_bucket_and_reported_once(caplog):
    healthy = take(load(FakeClips((0, 12, 12))), 12)
    loader = load(FakeClips((0, 12, 12), broken=[5]))
    batches = list(itertools.islice(loader, 12))
    loader.close()
    for batch, well in zip(batches, healthy):
        clips = clips_of(batch)
        assert 5 not in clips
        kept = [place for place, clip in enumerate(clips_of(well)) if clip != 5]
        for name in batch:
            np.testing.assert_array_equal(batch[name][kept], well[name][kept])
        assert all((clip < 12) == (clips[0] < 12) for clip in clips)
    assert loader.iterator.substituted == 2, "once in each of the two epochs"
    assert loader.iterator.failures == {5: "OSError: damaged bytes in clip 5"}
    assert caplog.text.count("damaged bytes in clip 5") == 1


def test_frames_of_another_shape_count_as_unreadable():
    source = FakeClips((0, 8, 0))
    read = source.read
    source.read = lambda index, bucket, rng: read(index, WIDE if index else TALL, rng)
    loader = load(source)
    assert all(0 not in clips_of(batch) for batch in itertools.islice(loader, 2))
    loader.close()
    assert "instead of uint8 (5, 16, 32, 3)" in loader.iterator.failures[0]


def test_a_bucket_of_unreadable_clips_stops_the_run():
    loader = load(FakeClips((0, 4, 0), broken=range(4)))
    with pytest.raises(ValueError, match=r"5x16x32: 4 clips in a row.*damaged bytes"):
        next(loader)
    loader.close()


def test_the_report_accounts_for_every_clip(caplog):
    source = FakeClips((16, 3, 0))
    source.shapes = np.concatenate([source.shapes, [(3, 16, 32), (9, 16, 40)]]).astype(np.int32)
    report = load(source).report
    rows = {row.bucket: row for row in report.rows}
    assert [rows[bucket].clips for bucket in BUCKETS] == [16, 4, 0]
    assert rows[WIDE].crop_loss == pytest.approx(0.2 / 4)
    assert report.empty == (TALL,)
    assert report.unassigned == {"too short (fewer than 5 frames)": 1}
    assert report.steps_per_epoch == 3
    for text in ("20 of 21 clips", "1 too short", "EMPTY", "1x16x32", "5.0%", "66.7%"):
        assert text in str(report)
    assert str(report) in caplog.text, "logged as a warning before the first step"
    caplog.clear()
    load(source, parts=[1], part_count=2)
    assert not caplog.text, "by one host"
    assert "repeat within" in str(load(FakeClips((16, 3, 4))).report)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"batch_size": lambda bucket: 3, "part_count": 2}, "3 clips.*multiple of 2"),
        ({"parts": [2], "part_count": 2}, r"parts=\(2,\) must be some of 0..1"),
        ({"parts": []}, r"parts=\(\)"),
        ({"caption_weights": {}}, "caption_weights"),
        ({"caption_weights": {"short": -1.0}}, "-1.0"),
        ({"caption_dropout": 1.5}, "1.5"),
        ({"epochs": 0}, "epochs=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        load(FakeClips((16, 8, 12)), **wrong)


def test_clips_that_fit_nowhere_are_an_error_with_the_reasons():
    source = FakeClips((0, 4, 0))
    source.shapes[:, 0] = 3
    message = r"none of the 4 clips.*4 too short.*3 to 3 frames.*make shorter or smaller buckets\.$"
    with pytest.raises(ValueError, match=message):
        load(source)
    with pytest.raises(ValueError, match="no clips"):
        load(FakeClips((0, 0, 0)))
