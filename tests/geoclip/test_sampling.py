import numpy as np
import pytest
from sklearn.metrics.pairwise import haversine_distances
from torch.utils.data import DataLoader

from geoclip.sampling import NeighbourBatchSampler, RandomBatchSampler, StepSampler


def world(n=500, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)


def samplers(n=500, batch_size=60, seed=0):
    yield RandomBatchSampler(n, batch_size, seed=seed)
    yield NeighbourBatchSampler(world(n), batch_size, neighbours=5, seed=seed)
    yield NeighbourBatchSampler(world(n), batch_size, neighbours=5, seeds=3, seed=seed)


def test_a_batch_depends_on_seed_and_step_only():
    in_order = [[s.batch(t).tolist() for t in range(20)] for s in samplers()]
    backwards = [[s.batch(t).tolist() for t in reversed(range(20))][::-1] for s in samplers()]
    assert in_order == backwards
    for batches, other in zip(in_order, samplers(seed=1), strict=True):
        assert batches[0] != batches[1]
        assert batches[0] != other.batch(0).tolist()


def test_no_row_comes_twice_and_the_size_is_kept():
    for sampler in samplers():
        for step in range(30):
            batch = sampler.batch(step)
            assert batch.dtype == np.int64
            assert len(set(batch.tolist())) == 60
            assert batch.min() >= 0
            assert batch.max() < 500


def test_random_batches_are_epochs():
    sampler = RandomBatchSampler(10, 3, seed=2)
    epochs = [np.concatenate([sampler.batch(3 * e + k) for k in range(3)]) for e in range(4)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 9
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_neighbours_are_the_nearest_on_the_ground():
    latlon = world(400)
    km = haversine_distances(np.radians(latlon))
    # one seed: exactly its six nearest places (itself first)
    sampler = NeighbourBatchSampler(latlon, 6, neighbours=5, seeds=1)
    for step in range(50):
        batch = sampler.batch(step)
        assert set(batch.tolist()) == set(np.argsort(km[batch[0]])[:6].tolist())


def test_neighbours_cross_the_date_line_and_the_pole():
    latlon = np.array([[0.0, 179.9], [0.0, -179.9], [0.0, 178.0], [89.9, 0.0], [89.9, 180.0], [89.0, 80.0]])
    sampler = NeighbourBatchSampler(latlon, 2, neighbours=1, seeds=1)
    pairs = {tuple(sampler.batch(step).tolist()) for step in range(60)}
    assert pairs == {(0, 1), (1, 0), (2, 0), (3, 4), (4, 3), (5, 3)}


def test_seeds_that_crowd_each_other_look_further():
    latlon = np.zeros((100, 2))  # every place is every other's nearest
    latlon[:, 1] = np.arange(100) * 1e-3
    for step in range(20):
        batch = NeighbourBatchSampler(latlon, 96, neighbours=11, seed=step).batch(step)
        assert len(set(batch.tolist())) == 96


def test_the_whole_data_set_may_be_one_batch():
    assert sorted(NeighbourBatchSampler(world(24), 24, neighbours=7).batch(5)) == list(range(24))
    assert sorted(RandomBatchSampler(24, 24).batch(5)) == list(range(24))


def test_random_rows_fill_what_seeds_leave():
    for step in range(10):
        batch = NeighbourBatchSampler(world(), 100, neighbours=7, seeds=4).batch(step).tolist()
        random = RandomBatchSampler(500, 100).batch(step).tolist()
        assert batch[:4] == random[:4]
        assert batch[32:] == [row for row in random[4:] if row not in batch[:32]][:68]


def test_a_loader_goes_on_at_the_trainers_step():
    sampler = RandomBatchSampler(50, 8, seed=1)
    step = 0
    stream = StepSampler(sampler.batch, lambda: step, 12)
    every = list(DataLoader(np.arange(50), batch_sampler=stream))
    assert len(every) == len(stream) == 12
    step = 9
    rest = list(DataLoader(np.arange(50), batch_sampler=stream))
    assert [b.tolist() for b in rest] == [b.tolist() for b in every[9:]]


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"batch_size.*10 rows.*got 11"):
        RandomBatchSampler(10, 11)
    with pytest.raises(ValueError, match=r"batch_size.*got 0"):
        RandomBatchSampler(10, 0)
    with pytest.raises(ValueError, match=r"latlon.*\(10, 3\)"):
        NeighbourBatchSampler(np.zeros((10, 3)), 4)
    with pytest.raises(ValueError, match=r"neighbours.*got -1"):
        NeighbourBatchSampler(world(10), 4, neighbours=-1)
    with pytest.raises(ValueError, match=r"seeds.*got 3 seeds with 2 neighbours"):
        NeighbourBatchSampler(world(10), 8, neighbours=2, seeds=3)
    with pytest.raises(ValueError, match="seeds"):
        NeighbourBatchSampler(world(10), 8, neighbours=2, seeds=-1)
