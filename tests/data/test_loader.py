"""The loader: one bucket a batch, the same on any number of hosts, exact resume, nothing lost."""

import collections
import itertools

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sora_jax.buckets import Bucket
from tests.data.fake_clips import (
    BATCH,
    IMAGE,
    TALL,
    WIDE,
    FakeClips,
    assert_same,
    clips_of,
    load,
    take,
)


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
