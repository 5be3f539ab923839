import numpy as np
from sklearn.metrics.pairwise import haversine_distances

from geoclip.support import order_by_support
from semivario_kernels import EARTH_RADIUS_KM, VariogramModel

MODEL = VariogramModel("stable", 0.2, 0.6, 30.0, 0.5)


def test_order_is_that_of_the_weighted_probabilities() -> None:
    rng = np.random.default_rng(0)
    n, candidates, scale = 37, 70, 14.0  # two chunks of pairs would need 215 photos: see the next test
    middle = np.column_stack([rng.uniform(-85, 85, n), rng.uniform(-180, 180, n)])
    latlon = middle[:, None] + rng.normal(0, 1, (n, candidates, 2)) * 10 ** rng.uniform(-3, 0.6, (n, 1, 1))
    similarity = -np.sort(-rng.uniform(0.2, 0.9, (n, candidates)).astype(np.float32), axis=1)
    order = order_by_support(latlon, similarity, scale, MODEL)
    for places, cosines, ours in zip(np.radians(latlon), similarity.astype(float), order, strict=True):
        h_km = EARTH_RADIUS_KM * haversine_distances(places)
        np.fill_diagonal(h_km, 0)
        weights = np.exp(scale * (cosines - cosines.max()))
        support = np.exp(-np.sqrt(h_km / 30)) @ weights / weights.sum()
        assert sorted(ours) == list(range(candidates))
        assert np.all(np.diff(support[ours]) <= 1e-9)
    assert (order[:, 0] != 0).any()


def test_a_lone_place_gives_way_to_three_neighbours_and_ties_keep_their_order() -> None:
    places = [[0.0, 0.0], [50.0, 10.0], [50.01, 10.0], [50.0, 10.01]]
    photos = 70_000  # more than one chunk
    latlon = np.tile(np.array(places), (photos, 1, 1))
    similarity = np.tile(np.array([0.5, 0.46, 0.45, 0.45], dtype=np.float32), (photos, 1))
    order = order_by_support(latlon, similarity, 20.0, MODEL)
    assert (order == order[0]).all()
    assert order[0, 0] == 1
    assert order[0, 3] == 0
    # nothing speaks for a neighbour where photos are not correlated beyond some metres
    alone = VariogramModel("exponential", 0.0, 1.0, 1e-3)
    assert order_by_support(latlon[:1], similarity[:1], 20.0, alone)[0].tolist() == [0, 1, 2, 3]
