import math

import numpy as np
import pytest
import torch

from geoclip.metrics import great_circle_km
from geoclip.queue import PlaceQueue, jitter, same_photo


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("latitude", [0.0, 45.0, -70.0, 89.0, 90.0, -90.0])
@pytest.mark.parametrize("longitude", [0.0, 180.0, -179.9999])
@pytest.mark.parametrize("metres", [150.0, 1000.0])
def test_noise_is_metres_on_the_ground_everywhere(latitude, longitude, metres):
    here = torch.tensor([[latitude, longitude]], dtype=torch.float64).expand(40_000, 2)
    moved = jitter(here, metres, generator())
    distance = 1000 * great_circle_km(here, moved)
    # two independent normal axes: the distance is Rayleigh distributed
    assert distance.mean() == pytest.approx(metres * math.sqrt(math.pi / 2), rel=0.01)
    assert np.median(distance) == pytest.approx(metres * math.sqrt(2 * math.log(2)), rel=0.015)
    assert (moved[:, 0].abs() <= 90).all()
    assert (moved[:, 1].abs() <= 180).all()


@pytest.mark.parametrize("latitude", [0.0, 60.0, 85.0])
def test_east_and_north_get_the_same_noise(latitude):
    here = torch.tensor([[latitude, 10.0]], dtype=torch.float64).expand(40_000, 2)
    north, east = (jitter(here, 1000.0, generator()) - here).T
    metre = 180 / math.pi / 6371.0088e3
    assert float(north.std()) / metre == pytest.approx(1000, rel=0.01)
    assert float(east.std()) / metre * math.cos(math.radians(latitude)) == pytest.approx(1000, rel=0.02)
    assert abs(float(np.corrcoef(north, east)[0, 1])) < 0.02


def test_noise_across_the_date_line_is_wrapped():
    here = torch.tensor([[12.0, 179.9999]], dtype=torch.float64).expand(1000, 2)
    moved = jitter(here, 1000.0, generator())
    assert (moved[:, 1] < -179).any()
    assert (moved[:, 1] > 179).any()
    assert great_circle_km(here, moved).max() < 6


@pytest.mark.parametrize("metres", [0.0, 1e-3])
def test_longitudes_come_back_within_180(metres):
    here = torch.tensor([[10.0, 350.0], [20.0, -190.0], [30.0, 40.0]], dtype=torch.float64)
    moved = jitter(here, metres, generator())
    np.testing.assert_allclose(moved[:, 1], [-10, 170, 40], rtol=0, atol=1e-6)


def test_noise_is_seeded_and_leaves_its_input_alone():
    here = torch.rand(50, 2, dtype=torch.float64) * 80
    kept = here.clone()
    first = jitter(here, 150.0, generator(3))
    assert torch.equal(first, jitter(here, 150.0, generator(3)))
    assert not torch.equal(first, jitter(here, 150.0, generator(4)))
    assert torch.equal(here, kept)
    assert torch.equal(jitter(here, 0.0), here)
    assert jitter(here.float(), 150.0).dtype == torch.float32


@pytest.mark.parametrize("metres", [-1.0, float("nan"), float("inf")])
def test_bad_noise_is_refused(metres):
    with pytest.raises(ValueError, match="metres"):
        jitter(torch.zeros(1, 2), metres)


def test_noise_wants_pairs():
    with pytest.raises(ValueError, match=r"latlon.*\(3, 3\)"):
        jitter(torch.zeros(3, 3), 1.0)


@pytest.mark.parametrize("batches", [[3] * 20, [7, 1, 10, 2, 25, 4, 10], [10] * 3, [40], [1] * 9])
def test_the_queue_holds_the_latest_places_only(batches):
    size, dim, seen = 10, 3, 0
    queue = PlaceQueue(size, dim)
    for n in batches:
        rows = torch.arange(seen, seen + n)
        latlon = torch.stack((rows, -2 * rows), dim=1).double()
        queue.enqueue(latlon, rows[:, None].expand(n, dim).float(), rows)
        seen += n
        held_latlon, held_embeddings, held_rows = queue.entries()
        held = sorted(held_rows.tolist())
        assert held == list(range(max(0, seen - size), seen))
        assert len(queue) == min(seen, size)
        assert queue.full == (seen >= size)
        # positions, embeddings and rows stay together
        assert torch.equal(held_latlon, torch.stack((held_rows, -2.0 * held_rows), dim=1).double())
        assert torch.equal(held_embeddings, held_rows[:, None].expand(-1, dim).half())


def test_a_checkpoint_carries_the_queue():
    queue = PlaceQueue(5, 2)
    queue.enqueue(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))
    other = PlaceQueue(5, 2)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.enqueue(torch.zeros(4, 2), torch.zeros(4, 2), torch.arange(3, 7))
    assert other.entries()[2].tolist() == queue.entries()[2].tolist() == [5, 6, 2, 3, 4]


def test_entries_do_not_change_with_the_next_batch():
    queue = PlaceQueue(2, 1)
    queue.enqueue(torch.ones(2, 2), torch.ones(2, 1), torch.arange(2))
    latlon, embeddings, rows = queue.entries()
    queue.enqueue(torch.zeros(2, 2), torch.zeros(2, 1), torch.arange(2, 4))
    assert latlon.sum() == 4
    assert embeddings.sum() == 2
    assert rows.tolist() == [0, 1]


def test_an_empty_queue_takes_anything_and_is_full():
    queue = PlaceQueue(0, 4)
    queue.enqueue(torch.ones(3, 2), torch.ones(3, 4), torch.arange(3))
    assert queue.full
    assert queue.entries()[0].shape == (0, 2)
    assert queue.entries()[1].shape == (0, 4)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="size"):
        PlaceQueue(-1, 4)
    with pytest.raises(ValueError, match="dim"):
        PlaceQueue(1, 0)
    with pytest.raises(ValueError, match="one length, got 3, 2 and 3"):
        PlaceQueue(4, 1).enqueue(torch.ones(3, 2), torch.ones(2, 1), torch.arange(3))


def test_the_same_photo_in_the_queue_is_found():
    rows = torch.tensor([4, 9, 2])
    gallery_rows = torch.tensor([4, 9, 2, 7, 2, 4, 8, 2])
    assert same_photo(rows, gallery_rows).tolist() == [[5, -1], [-1, -1], [4, 7]]
    assert same_photo(rows, gallery_rows[:4]) is None
    assert same_photo(rows, rows) is None
