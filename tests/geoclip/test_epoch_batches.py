import copy

import numpy as np
import pytest
from sklearn.metrics.pairwise import haversine_distances
from torch.utils.data import DataLoader

from geoclip.sampling import EpochBatchSampler, geographic_neighbours

from .rendered_photos import random_latlon

LATLON = random_latlon(1003, 5)
NEAR = geographic_neighbours(LATLON, 128)
SHARED = np.random.default_rng(6).integers(90, size=1003)  # about eleven rows a place
SHARED_NEAR = geographic_neighbours(random_latlon(90, 7), 20)
FALSE = np.ascontiguousarray(NEAR[:, :5])


def samplers(**options):
    yield EpochBatchSampler(1003, 20, **options)
    yield EpochBatchSampler(1003, 20, neighbours=NEAR, nearest=4, further=4, **options)
    yield EpochBatchSampler(1003, 20, neighbours=NEAR, avoid=FALSE, nearest=4, further=4, **options)
    yield EpochBatchSampler(1003, 20, places=SHARED, **options)
    yield EpochBatchSampler(1003, 20, neighbours=SHARED_NEAR, places=SHARED, nearest=4, further=4, **options)


def test_every_row_at_most_once_an_epoch_and_the_length_holds():
    for sampler in samplers():
        left_out = set()
        for epoch in range(4):
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == 50
            rows = np.concatenate(batches)
            assert all(len(batch) == 20 for batch in batches)
            assert len(set(rows.tolist())) == 1000
            assert rows.min() >= 0
            assert rows.max() <= 1002
            left_out |= set(range(1003)) - set(rows.tolist())
        assert len(left_out) > 6  # drawn anew, and row 0 like any other


def test_no_place_twice_in_a_batch():
    for sampler in list(samplers())[3:]:
        for batch in sampler:
            assert len(set(SHARED[batch].tolist())) == 20


def test_a_place_with_more_rows_than_batches_loses_some():
    places = np.array([0] * 30 + list(range(1, 31)))
    sampler = EpochBatchSampler(60, 6, places=places)
    # 6 batches of 5 other places each
    assert len(sampler) == 6
    assert sorted(np.sum(places[batch] == 0) for batch in sampler) == [1] * 6


def test_epochs_seeds_and_order_of_asking():
    for sampler, other in zip(samplers(), samplers(seed=1), strict=True):
        forward = [sampler.batch(step).tolist() for step in range(120)]
        again = [sampler.batch(step).tolist() for step in reversed(range(120))][::-1]
        assert forward == again
        assert forward[:50] == list(sampler)
        assert forward[:50] != forward[50:100]
        assert forward[:50] != list(other)


def test_seeds_bring_their_nearest_and_some_further():
    near = geographic_neighbours(LATLON[:975])
    sampler = EpochBatchSampler(975, 65, neighbours=near)  # 15 batches, none left out
    batch = sampler.batch(0)
    seed = batch[0]
    assert batch[1:33].tolist() == near[seed, :32].tolist()
    assert len(set(batch[33:].tolist()) & set(near[seed, 32:].tolist())) == 32
    assert batch[33:].tolist() != near[seed, 32:64].tolist()
    # the ranks behind come alike often
    counts = np.zeros(96)
    for epoch in range(300):
        sampler.set_epoch(epoch)
        batch = sampler.epoch_batches()[0]
        counts += np.isin(near[batch[0], 32:], batch[33:])
    assert abs(counts - 100).max() < 40  # binomial, 300 draws of 1/3: a standard deviation of 8.2


def test_near_places_come_together():
    km = haversine_distances(np.radians(LATLON)) * 6371.0088
    np.fill_diagonal(km, np.inf)
    random, near, *_ = (sampler.coverage(LATLON) for sampler in samplers())
    sampler = EpochBatchSampler(1003, 20)
    by_hand = np.mean([km[np.ix_(batch, batch)].min(axis=1).mean() for batch in sampler])
    assert random.mean_neighbour_km == pytest.approx(by_hand, rel=1e-9)
    assert near.mean_neighbour_km < 0.5 * random.mean_neighbour_km
    assert random[:3] == near[:3] == (50, 1000, 3)


def test_avoided_places_stay_apart():
    near = EpochBatchSampler(1003, 20, neighbours=NEAR, nearest=16, further=4)
    apart = EpochBatchSampler(1003, 20, neighbours=NEAR, avoid=FALSE, nearest=16, further=4)

    def together(sampler):
        return sum(np.isin(FALSE[batch], batch).sum() for batch in sampler)

    assert together(apart) < 0.1 * together(near)


def test_ranks_are_disjoint_and_alike_in_number():
    for one, *ranks in zip(
        samplers(rank=0, world_size=1), *(samplers(rank=r, world_size=4) for r in range(4)), strict=True
    ):
        rows = [np.concatenate(list(sampler)) for sampler in ranks]
        assert [len(sampler) for sampler in ranks] == [12] * 4
        assert len(set(np.concatenate(rows).tolist())) == 4 * 12 * 20
        assert len(one) == 50


@pytest.mark.parametrize("done", [0, 7, 50])
def test_a_state_goes_on_inside_the_epoch(done):
    for sampler, fresh in zip(samplers(seed=3), samplers(seed=3), strict=True):
        sampler.set_epoch(5)
        iterator = iter(sampler)
        every = list(sampler)
        for _ in range(done):
            next(iterator)
        fresh.load_state_dict(copy.deepcopy(sampler.state_dict(batches_done=done)))
        if done == 50:
            assert fresh.epoch == 6
            sampler.set_epoch(6)
            assert list(fresh) == list(sampler)
        else:
            fresh.set_epoch(5)  # what a trainer says at the start of the epoch that goes on
            assert list(fresh) == every[done:]
            assert list(fresh) == every
            fresh.set_epoch(6)
            assert list(fresh) != every


def test_handed_out_batches_are_counted():
    sampler = EpochBatchSampler(1003, 20)
    iterator = iter(sampler)
    for _ in range(3):
        next(iterator)
    assert sampler.state_dict()["batches_done"] == 3


def test_replaced_neighbours_travel_in_the_state():
    sampler, fresh = (EpochBatchSampler(1003, 20, neighbours=NEAR) for _ in range(2))
    sampler.set_neighbours(np.ascontiguousarray(NEAR[:, ::-1]))
    assert list(sampler) != list(fresh)
    fresh.load_state_dict(sampler.state_dict(batches_done=0))
    assert list(sampler) == list(fresh)
    with pytest.raises(ValueError, match="another table"):
        EpochBatchSampler(1003, 20, neighbours=FALSE).load_state_dict(
            EpochBatchSampler(1003, 20, neighbours=NEAR).state_dict()
        )


def test_a_loader_takes_it():
    sampler = EpochBatchSampler(1003, 20, neighbours=NEAR)
    loader = DataLoader(np.arange(1003), batch_sampler=sampler, num_workers=2)
    assert len(loader) == 50
    assert [batch.tolist() for batch in loader] == list(sampler)


def bad_table(value, row=3, column=2):
    table = NEAR.copy()
    table[row, column] = value
    return table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size: wanted at least 2.*got 1"),
        ({"rows": 10, "batch_size": 20}, "rows: wanted at least a batch of 20 .*got 10 rows of 10 places"),
        ({"batch_size": 600, "world_size": 2}, "batch of 600 different places for each of 2 processes"),
        ({"places": np.zeros(1003, np.int64)}, "batch of 20 different places .*1003 rows of 1 places"),
        ({"rows": 0}, "got 0 rows"),
        ({"neighbours": NEAR[:900]}, r"neighbours: wanted \(1003, K\) int32.*\(900, 128\)"),
        ({"neighbours": NEAR.astype(np.int64)}, "neighbours: wanted .*int64"),
        (
            {"neighbours": bad_table(1003)},
            "neighbours: wanted places between 0 and 1002.* 1003 in the row of place 3",
        ),
        (
            {"neighbours": bad_table(-2)},
            "neighbours: wanted places between 0 and 1002.* -2 in the row of place 3",
        ),
        ({"neighbours": bad_table(3)}, "others than the place itself, got 3"),
        (
            {"neighbours": bad_table(NEAR[3, 50])},
            f"every neighbour once, got {NEAR[3, 50]} in the row of place 3",
        ),
        ({"avoid": bad_table(4000)}, "avoid: wanted places"),
        ({"nearest": -1}, "nearest, further: wanted at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, "rank: wanted between 0 and .*got 2"),
        ({"places": np.zeros(5, np.int64)}, "places: wanted 1003 numbers"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        EpochBatchSampler(**{"rows": 1003, "batch_size": 20, **options})


def test_a_state_of_other_settings_is_refused():
    state = EpochBatchSampler(1003, 20, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed: the saved state has 1, this sampler 2"):
        EpochBatchSampler(1003, 20, seed=2).load_state_dict(state)
