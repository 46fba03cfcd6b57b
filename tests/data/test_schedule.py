"""The order of clips and of buckets, without any clip being read."""

import itertools

import grain
import numpy as np

from sora_jax.data.schedule import Schedule, Shuffle, schedule


def test_every_bucket_gets_exactly_its_share_and_its_batches_in_order():
    rng = np.random.default_rng(0)
    for count in range(1, 10):
        shares = rng.integers(1, 50, count).tolist()
        steps = Schedule(shares, 3 * sum(shares))
        taken = np.zeros(count, int)
        for step in range(len(steps)):
            bucket, batch = steps[step]
            assert batch == taken[bucket], "none is skipped or repeated"
            taken[bucket] += 1
            even = (step + 1) * np.array(shares) / sum(shares)
            assert np.abs(taken - even).max() < 5, "spread over the epoch"
            if (step + 1) % sum(shares) == 0:
                assert taken.tolist() == even.tolist()


def test_endless_shares_are_clips_over_batch_size_and_finite_ones_round_up():
    endless = schedule([(11, 8), (3, 4)], None)  # 11 / 8 and 6 / 8 steps
    buckets = [endless[step][0] for step in range(17)]
    assert (buckets.count(0), buckets.count(1)) == (11, 6)
    finite = schedule([(11, 8), (3, 4), (8, 4)], 1)
    assert sorted(finite[step][0] for step in range(len(finite))) == [0, 0, 1, 2, 2]


def test_shuffle_is_a_permutation_of_each_epoch_whatever_is_read_first():
    for count in (1, 2, 3, 100):
        parent = grain.MapDataset.range(count)
        forward = Shuffle(parent, seed=5)
        epochs = [[forward[epoch * count + i] for i in range(count)] for epoch in range(4)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        backward = Shuffle(parent, seed=5)
        backwards = [backward[index] for index in reversed(range(4 * count))]
        assert backwards[::-1] == list(itertools.chain(*epochs))
    assert len({tuple(epoch) for epoch in epochs}) == 4
