import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import haversine_distances

from geoclip.sampling import geographic_neighbours, similarity_neighbours, surprise_neighbours
from semivario_kernels import NegativePolicy, VariogramModel

from .rendered_photos import random_latlon


def brute_force(latlon, k):
    """Rows by float64 haversine distance, the own one left out, equally far ones by index."""
    km = haversine_distances(np.radians(latlon)) * 6371.0088
    np.fill_diagonal(km, np.inf)
    return np.argsort(km, axis=1, kind="stable")[:, :k], km


def clustered(n, seed=0):
    rng = np.random.default_rng(seed)
    latlon = random_latlon(20, seed)[rng.integers(20, size=n)] + rng.normal(size=(n, 2))
    latlon[:, 0] = np.clip(latlon[:, 0], -90, 90)
    return latlon


@pytest.mark.parametrize("latlon", [random_latlon(1500, 1), clustered(2500)], ids=["sphere", "clusters"])
def test_nearest_as_a_float64_brute_force(latlon):
    wanted, km = brute_force(latlon, 128)
    ours = geographic_neighbours(latlon)
    assert ours.dtype == np.int32
    rows = np.arange(len(latlon))[:, None]
    # haversine itself is good to a micrometre here; order within that is no matter
    np.testing.assert_allclose(km[rows, ours], km[rows, wanted], rtol=0, atol=1e-9)
    assert (ours != wanted).sum() < 10


def test_published_degrees_would_differ():
    latlon = random_latlon(600, 2)
    degrees = haversine_distances(latlon)  # radians wanted, degrees given: the published script
    np.fill_diagonal(degrees, np.inf)
    ours = geographic_neighbours(latlon, 10)
    assert (
        np.mean([len(set(a) & set(b)) for a, b in zip(ours, degrees.argsort(axis=1)[:, :10], strict=True)])
        < 2
    )


def test_duplicates_come_in_the_order_of_their_rows():
    latlon = random_latlon(400, 3)
    latlon[[7, 20, 21, 350]] = latlon[50]
    latlon[100:300] = latlon[99]  # more than there is room for
    wanted, _ = brute_force(latlon, 12)
    np.testing.assert_array_equal(geographic_neighbours(latlon, 12), wanted)
    np.testing.assert_array_equal(geographic_neighbours(np.zeros((6, 2)), 3)[:2], [[1, 2, 3], [0, 2, 3]])


def test_one_place_written_in_several_ways_is_one():
    latlon = np.array(
        [[10.0, 180.0], [10.0, -180.0], [10.0, 540.0 - 360], [90.0, 5.0], [90.0, -120.0], [-0.0, 0.0]]
    )
    np.testing.assert_array_equal(
        geographic_neighbours(latlon, 2)[:5], [[1, 2], [0, 2], [0, 1], [4, 0], [3, 0]]
    )


def test_date_line_and_pole():
    latlon = np.array([[0.0, 179.9], [0.0, -179.9], [0.0, 178.0], [89.9, 0.0], [89.9, 180.0], [89.0, 80.0]])
    assert geographic_neighbours(latlon, 1).T.tolist() == [[1, 0, 0, 4, 3, 3]]


def test_fewer_others_than_neighbours_are_padded():
    np.testing.assert_array_equal(
        geographic_neighbours(np.array([[0.0, 0], [0, 1], [0, 3]]), 4),
        [[1, 2, -1, -1], [0, 2, -1, -1], [1, 0, -1, -1]],
    )


def test_similar_as_a_brute_force():
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4200, 24, generator=g, dtype=torch.float64) for _ in range(2))
    y[40:60] = y[40]  # equally similar: in the order of their rows, the own one left out
    rows = np.concatenate((np.arange(30, 80), np.arange(4050, 4200)))  # on both sides of a chunk's end
    for queries, references in ((x, None), (x, y)):
        other = queries if references is None else references
        cosine = (
            torch.nn.functional.normalize(queries[rows], dim=1)
            @ torch.nn.functional.normalize(other, dim=1).T
        )
        cosine[torch.arange(len(rows)), rows] = -2
        wanted = cosine.sort(dim=1, descending=True, stable=True).indices[:, :30].numpy()
        ours = similarity_neighbours(queries, 30, references)
        assert not (ours == np.arange(4200)[:, None]).any()
        of_row = cosine.numpy()[np.arange(len(rows))[:, None], ours[rows]]
        np.testing.assert_allclose(of_row, np.take_along_axis(cosine.numpy(), wanted, 1), rtol=0, atol=1e-12)
    equal = similarity_neighbours(y, 30)[45, :19]
    assert equal.tolist() == [row for row in range(40, 60) if row != 45]


def surprise_world(n=700):
    """Embeddings with a correlated part that the variogram knows, and twins far away that it does not."""
    rng = np.random.default_rng(4)
    latlon = clustered(n, 4)
    centre = np.round(latlon[:, 0] / 4).astype(int)  # alike because near
    base = rng.normal(size=(60, 32))[centre % 60]
    v = torch.from_numpy(base + 0.7 * rng.normal(size=(n, 32)))
    return v, latlon, VariogramModel("exponential", 0.2, 0.8, 900.0)


def log_weight(km, d):
    """Of `explained` with hard = false = 1 under the world's model, of sill 1; 0 for a place and itself."""
    rho = np.exp(-km / 900.0)
    e = np.maximum(0.2 + 0.8 * (1 - rho) - d, 0)
    weight = e * (1 - rho) - rho * np.maximum(1 - d, 0)
    np.fill_diagonal(weight, 0)
    return weight


def test_surprise_as_its_definition():
    v, latlon, model = surprise_world()
    hard, false = surprise_neighbours(v, latlon, model, 16, candidates=699)
    unit = torch.nn.functional.normalize(v, dim=1)
    weight = log_weight(haversine_distances(np.radians(latlon)) * 6371.0088, (1 - unit @ unit.T).numpy())
    for table, strength in ((hard, weight), (false, -weight)):
        best = -np.sort(-np.maximum(strength, 0), axis=1)[:, :16]
        got = np.where(table >= 0, np.take_along_axis(strength, np.maximum(table, 0).astype(int), 1), 0)
        np.testing.assert_allclose(got, best, rtol=0, atol=1e-6)  # d is a float32 product
        assert (table >= 0).mean() > 0.3
    assert (false == -1).any()


def test_surprise_across_views_reads_the_other_view():
    v, latlon, model = surprise_world()
    u = v + torch.from_numpy(np.random.default_rng(5).normal(scale=0.5, size=v.shape))
    hard, false = surprise_neighbours(v, latlon, model, 16, candidates=699, references=u)
    d = (1 - torch.nn.functional.normalize(v, dim=1) @ torch.nn.functional.normalize(u, dim=1).T).numpy()
    km = haversine_distances(np.radians(latlon)) * 6371.0088
    weight = log_weight(km, d)
    for table, strength in ((hard, weight), (false, -weight)):
        best = -np.sort(-np.maximum(strength, 0), axis=1)[:, :16]
        got = np.where(table >= 0, np.take_along_axis(strength, np.maximum(table, 0).astype(int), 1), 0)
        np.testing.assert_allclose(got, best, rtol=0, atol=1e-6)


def test_hard_ones_are_far_and_false_ones_near():
    v, latlon, model = surprise_world()
    hard, false = surprise_neighbours(v, latlon, model, 16)
    km = haversine_distances(np.radians(latlon)) * 6371.0088
    rows = np.arange(700)[:, None]
    assert np.median(km[rows, hard][hard >= 0]) > 3 * np.median(km[rows, false][false >= 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geographic_neighbours(np.array([[0.0, 0], [np.nan, 1]])), "row 2 has latitude nan"),
        (lambda: geographic_neighbours(np.array([[0.0, 0], [95, 1]])), "row 2 has latitude 95"),
        (lambda: geographic_neighbours(np.zeros((5, 3))), r"wanted \(N, 2\)"),
        (lambda: geographic_neighbours(np.zeros((1, 2))), "at least 2 .*got 1"),
        (lambda: geographic_neighbours(np.zeros((5, 2)), 0), "k: wanted at least 1 neighbour, got 0"),
        (lambda: similarity_neighbours(torch.ones(5, 3), 0), "k: wanted at least 1"),
        (lambda: similarity_neighbours(torch.ones(5, 3), 2, torch.ones(4, 3)), r"\(5, 3\) and \(4, 3\)"),
        (lambda: similarity_neighbours(torch.full((5, 3), torch.nan), 2), "queries: wanted finite"),
        (
            lambda: surprise_neighbours(
                torch.ones(5, 3), np.zeros((4, 2)), VariogramModel("gaussian", 0, 1, 1)
            ),
            "latlon: wanted one row per embedding, 5, got 4",
        ),
        (
            lambda: surprise_neighbours(
                torch.ones(5, 3), np.zeros((5, 2)), VariogramModel("gaussian", 0, 1, 1), 9, candidates=8
            ),
            r"k: wanted between 1 and candidates \(8\), got 9",
        ),
        (
            lambda: surprise_neighbours(
                torch.ones(5, 3),
                np.zeros((5, 2)),
                VariogramModel("gaussian", 0, 1, 1),
                policy=NegativePolicy.none(),
            ),
            "policy: .*got 'none'",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
