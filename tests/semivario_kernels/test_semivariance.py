import io

import gstools as gs
import numpy as np
import pytest
import torch
from places import SPECIAL_PLACES, embeddings_of, random_latlon
from scipy.stats import chi2
from sklearn.metrics.pairwise import cosine_distances, haversine_distances

from semivario_kernels import (
    EARTH_RADIUS_KM,
    EmpiricalVariogram,
    binned_semivariance,
    cosine_dissimilarity,
    even_edges_km,
    log_edges_km,
    pairwise_haversine,
)
from semivario_kernels.ranks import Ranks
from semivario_kernels.robust_estimators import chi2_median, effective_dimensions
from semivario_kernels.semivariance import _fingerprint
from semivario_kernels.sorted_places import sorted_places


def pairs_of(v, latlon, u=None, other_latlon=None):
    """(h km, d) of all pairs i < j, or of all pairs of two sets, by scikit-learn."""
    a = np.radians(latlon.numpy())
    h = EARTH_RADIUS_KM * haversine_distances(a, None if u is None else np.radians(other_latlon.numpy()))
    d = cosine_distances(v.numpy(), None if u is None else u.numpy())
    if u is not None:
        return h.ravel(), d.ravel()
    upper = np.triu_indices(len(v), 1)
    return h[upper], d[upper]


def check_against_pairs(ours, h, d, edges, exact=True):
    """Counts are exact; float32 products keep d to 3e-7, and h, in whole units of 4 m, to 2 m and 1e-6."""
    bin_of = np.searchsorted(edges, h, side="right") - 1
    inside = (bin_of >= 0) & (bin_of < len(edges) - 1)
    bin_of, h, d = bin_of[inside], h[inside], d[inside]
    counts = np.bincount(bin_of, minlength=len(edges) - 1)
    np.testing.assert_array_equal(ours.counts, counts)
    pairs = np.where(counts > 0, counts, np.nan)
    mean_h, mean_d = (np.bincount(bin_of, weights=w, minlength=len(pairs)) / pairs for w in (h, d))
    variance = np.bincount(bin_of, weights=(d - mean_d[bin_of]) ** 2, minlength=len(pairs)) / pairs
    d_error, h_error = (1e-9, 1e-9) if exact else (3e-7, 2e-3 + 1e-6 * edges[1:])
    np.testing.assert_array_less(np.abs(ours.gamma - mean_d)[counts > 0], d_error)
    np.testing.assert_array_less(
        (np.abs(ours.lag_km - mean_h) - h_error)[counts > 0], 1e-9 * mean_h[counts > 0]
    )
    np.testing.assert_array_less(np.abs(ours.std**2 - variance)[counts > 0], 5 * d_error)
    lowest = np.sqrt(variance / pairs)
    np.testing.assert_array_less((lowest**2 - ours.stderr**2)[counts > 0], 5 * d_error)
    for values in (ours.gamma, ours.std, ours.lag_km, ours.stderr):
        np.testing.assert_array_equal(np.isnan(values), counts == 0)


@pytest.fixture
def field():
    latlon = torch.cat([random_latlon(300, 1), torch.tensor(SPECIAL_PLACES, dtype=torch.float64)])
    return embeddings_of(latlon), latlon


def test_equals_all_pairs(field):
    edges = even_edges_km(20100.0, 40)  # beyond the antipode: every pair is in a bin
    ours = binned_semivariance(*field, edges_km=edges)
    assert ours.counts.sum() == len(field[0]) * (len(field[0]) - 1) // 2
    check_against_pairs(ours, *pairs_of(*field), edges)
    assert ours.duplicates == 3  # the poles, the date line and the twin
    assert not ours.sampled


def test_cross_semivariogram_counts_every_pair(field):
    v, latlon = field
    u, other = embeddings_of(latlon[200:], seed=9), latlon[200:]
    edges = log_edges_km(500.0, 20100.0, 12)
    ours = binned_semivariance(v, latlon, other=u, other_latlon=other, edges_km=edges)
    assert ours.counts.sum() == len(v) * len(u)
    check_against_pairs(ours, *pairs_of(v, latlon, u, other), edges)


def test_equals_gstools(field):
    v, latlon = field
    edges = np.concatenate([[0.0], np.linspace(400.0, 15000.0, 12)])
    unit = torch.nn.functional.normalize(v, dim=1).numpy()
    _, gamma, counts = gs.vario_estimate(
        latlon.T.numpy(), list(unit.T), edges / EARTH_RADIUS_KM, latlon=True, return_counts=True
    )
    ours = binned_semivariance(v, latlon, edges_km=edges)
    np.testing.assert_array_equal(ours.counts * unit.shape[1], counts)  # GSTools counts pairs of every field
    np.testing.assert_allclose(ours.gamma / unit.shape[1], gamma, rtol=1e-10)


def test_pairs_are_counted_in_tiles_larger_than_one():
    latlon = random_latlon(1500, 3)  # more than a tile, and not a multiple of one
    v = embeddings_of(latlon, dim=8)
    edges = even_edges_km(20100.0, 15)
    check_against_pairs(binned_semivariance(v, latlon, edges_km=edges), *pairs_of(v, latlon), edges)


def test_edges_belong_to_the_bin_above():
    latlon = torch.tensor([[0.0, 0.0], [0.0, 90.0]], dtype=torch.float64)
    quarter = np.pi / 2 * EARTH_RADIUS_KM
    v = torch.eye(2, dtype=torch.float64)
    above = binned_semivariance(v, latlon, edges_km=np.array([0.0, quarter * (1 - 1e-12), quarter * 1.5]))
    assert above.counts.tolist() == [0, 1]
    below = binned_semivariance(v, latlon, edges_km=np.array([0.0, quarter * (1 + 1e-12), quarter * 1.5]))
    assert below.counts.tolist() == [1, 0]


def test_duplicates_count_from_zero_and_are_reported_above_it():
    latlon = torch.tensor([[10.0, 20.0], [10.0, 20.0], [10.0, 380.0], [11.0, 20.0]], dtype=torch.float64)
    v = torch.eye(4, dtype=torch.float64)
    from_zero = binned_semivariance(v, latlon, edges_km=np.array([0.0, 1.0, 200.0]))
    assert (from_zero.counts.tolist(), from_zero.duplicates) == ([3, 3], 3)
    above = binned_semivariance(v, latlon, edges_km=np.array([1e-3, 1.0, 200.0]))
    assert (above.counts.tolist(), above.duplicates) == ([0, 3], 3)


def test_rows_without_an_image_do_not_count(field):
    v, latlon = field
    v[5], v[250] = 0, 0
    kept = torch.ones(len(v), dtype=torch.bool)
    kept[[5, 250]] = False
    edges = even_edges_km(20100.0, 10)
    check_against_pairs(
        binned_semivariance(v, latlon, edges_km=edges), *pairs_of(v[kept], latlon[kept]), edges
    )


def test_float16_and_numpy_input(field):
    v, latlon = field[0].half(), field[1]
    edges = even_edges_km(20100.0, 10)
    ours = binned_semivariance(v.numpy(), latlon.numpy(), edges_km=edges)
    check_against_pairs(ours, *pairs_of(v.double(), latlon), edges, exact=False)


def test_max_lag_drops_the_bins_beyond(field):
    edges = even_edges_km(20000.0, 20)
    full = binned_semivariance(*field, edges_km=edges)
    short = binned_semivariance(*field, edges_km=edges, max_lag_km=5500.0)
    np.testing.assert_array_equal(short.edges_km, edges[:6])
    np.testing.assert_array_equal(short.counts, full.counts[:5])
    np.testing.assert_allclose(short.gamma, full.gamma[:5], rtol=1e-12)


@pytest.mark.parametrize("estimator", ["cressie-hawkins", "dowd"])
def test_robust_estimators_equal_their_formula(field, estimator):
    v, latlon = field
    edges = even_edges_km(20100.0, 6)
    ours = binned_semivariance(v, latlon, edges_km=edges, estimator=estimator)
    h, d = pairs_of(v, latlon)
    unit = torch.nn.functional.normalize(v, dim=1).numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    nu = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    for k in range(6):
        inside = d[(h >= edges[k]) & (h < edges[k + 1])]
        if estimator == "dowd":
            wanted = np.median(inside) * nu / chi2.median(nu)
            assert ours.gamma[k] == pytest.approx(wanted, abs=3e-4)
        else:
            wanted = (inside**0.25).mean() ** 4 / chi2.expect(lambda t: (t / nu) ** 0.25, args=(nu,)) ** 4
            assert ours.gamma[k] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("estimator", ["cressie-hawkins", "dowd"])
def test_robust_estimators_agree_with_matheron_on_gaussian_fields(estimator):
    # independent Gaussian vectors of many dimensions: d scatters like χ²_ν/ν around γ
    latlon = random_latlon(900, 5)
    v = torch.randn(900, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edges = even_edges_km(20100.0, 4)
    matheron = binned_semivariance(v, latlon, edges_km=edges)
    robust = binned_semivariance(v, latlon, edges_km=edges, estimator=estimator)
    np.testing.assert_allclose(robust.gamma, matheron.gamma, rtol=0.01)


@pytest.mark.parametrize("nu", [0.7, 1.0, 12.3, 768.0])
def test_chi2_median_equals_scipy(nu):
    assert chi2_median(nu) == pytest.approx(chi2.median(nu), rel=1e-10)


def test_effective_dimensions():
    g = torch.Generator().manual_seed(0)
    places, _ = sorted_places(
        [("v", torch.randn(20000, 10, generator=g), random_latlon(20000, 1))], 1, Ranks()
    )
    assert effective_dimensions(places) == pytest.approx(10, rel=0.01)
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert effective_dimensions(
        sorted_places([("v", line, random_latlon(4, 1))], 1, Ranks())[0]
    ) == pytest.approx(1)


def test_few_pairs_in_a_bin_warn_for_robust_estimators():
    latlon = random_latlon(12, 1)
    with pytest.warns(UserWarning, match=r"dowd wants at least 30 pairs a bin; bins \[0, 1\] hold fewer"):
        ours = binned_semivariance(
            embeddings_of(latlon), latlon, edges_km=even_edges_km(9000.0, 2), estimator="dowd"
        )
    assert np.isnan(ours.gamma).all()
    assert (ours.counts > 0).all()


def test_merge_equals_the_union_of_pairs(field):
    v, latlon = field
    edges = even_edges_km(20100.0, 60)  # some bins stay empty in one part
    left, right = slice(0, 20), slice(20, None)
    within = [binned_semivariance(v[s], latlon[s], edges_km=edges) for s in (left, right)]
    across = binned_semivariance(
        v[left], latlon[left], other=v[right], other_latlon=latlon[right], edges_km=edges
    )
    merged = within[0].merge(within[1]).merge(across)
    whole = binned_semivariance(v, latlon, edges_km=edges)
    assert merged.duplicates == whole.duplicates
    np.testing.assert_array_equal(merged.counts, whole.counts)
    for name in ("gamma", "std", "lag_km"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(merged.stderr, whole.std / np.sqrt(whole.counts), rtol=1e-9)
    assert merged.blocks is None
    with pytest.raises(ValueError, match="other: wanted the edges"):
        merged.merge(binned_semivariance(v, latlon, edges_km=edges[:-1]))
    robust = binned_semivariance(v, latlon, edges_km=even_edges_km(20100.0, 2), estimator="dowd")
    with pytest.raises(ValueError, match="only matheron estimates keep sums"):
        robust.merge(robust)


def test_save_and_load(field, tmp_path):
    ours = binned_semivariance(*field, edges_km=even_edges_km(20100.0, 60), max_pairs=20_000, seed=5)
    ours.save(tmp_path / "variogram.npz")
    back = EmpiricalVariogram.load(tmp_path / "variogram.npz")
    assert (back.duplicates, back.sampled, back.seed, back.estimator) == (
        ours.duplicates,
        True,
        5,
        "matheron",
    )
    for name in ("edges_km", "lag_km", "counts", "gamma", "std", "stderr", "fraction"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ours, name))
    np.testing.assert_array_equal(back.blocks.counts, ours.blocks.counts)
    np.testing.assert_array_equal(back.blocks.sums, ours.blocks.sums)
    array = io.BytesIO()
    np.save(array, ours.gamma)
    whole = (tmp_path / "variogram.npz").read_bytes()
    for other in (b"not an archive", whole[: len(whole) // 2], array.getvalue()):
        (tmp_path / "other.npz").write_bytes(other)
        with pytest.raises(ValueError, match=r"other\.npz: not an empirical semivariogram"):
            EmpiricalVariogram.load(tmp_path / "other.npz")


def test_progress_bar_is_drawn(field, capsys):
    binned_semivariance(*field, edges_km=even_edges_km(20100.0, 2), progress=True)
    assert "binned semivariance" in capsys.readouterr().err


def test_edges():
    edges = log_edges_km(1.0, 10000.0, 9)
    assert len(edges) == 10
    np.testing.assert_allclose(edges[1:], 10.0 ** np.linspace(0, 4, 9), rtol=1e-12)
    assert edges[0] == 0
    np.testing.assert_allclose(even_edges_km(10.0, 4), [0, 2.5, 5, 7.5, 10])
    for make, message in (
        (lambda: log_edges_km(0, 10, 4), "first_km: .*got 0"),
        (lambda: log_edges_km(10, 10, 4), "last_km: .*got 10"),
        (lambda: log_edges_km(1, 10, 1), "bins: wanted a whole number of 2 or more, got 1"),
        (lambda: even_edges_km(-1, 4), "last_km: .*got -1"),
        (lambda: even_edges_km(1, 0), "bins: wanted a whole number of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_numbers_of_numpy_and_of_other_machines_are_taken():
    v, latlon = np.eye(3).astype(">f8"), np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=">f4")
    found = binned_semivariance(v, latlon, edges_km=(0, 150, 300), max_pairs=2, seed=np.int64(3))
    assert found.counts.sum() <= 3
    assert found.seed == 3
    with pytest.raises(ValueError, match="embeddings: wanted numbers, got a NumPy array of dtype"):
        binned_semivariance(np.eye(3, dtype=np.longdouble), latlon, edges_km=(0, 150, 300))


def test_a_gradient_is_not_asked_for():
    v, latlon = torch.eye(3).requires_grad_(), torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    found = binned_semivariance(v, latlon.requires_grad_(), edges_km=[0, 150, 300])
    assert found.counts.tolist() == [2, 1]
    assert not cosine_dissimilarity(v).requires_grad
    assert not pairwise_haversine(latlon).requires_grad


def test_checkpoints_know_places_beyond_the_whole_numbers_of_float32():
    rows = 2**24 + 4
    of = [_fingerprint(torch.full((1, 3), value).expand(rows, 3)) for value in (0.0, 0.0, 1.0)]
    assert of[0] == of[1] != of[2]


V, PLACES = torch.eye(3), torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": V[:1], "latlon": PLACES[:1]}, "embeddings: wanted at least 2 rows .* got 1"),
        (
            {"embeddings": torch.zeros(3, 4)},
            "embeddings: wanted at least 2 rows that are not all zero, got 0",
        ),
        ({"latlon": PLACES[:2]}, r"latlon: wanted shape \(3, 2\).*got \(2, 2\)"),
        ({"latlon": PLACES + 91}, "latlon: .*within ±90"),
        ({"edges_km": np.array([0.0])}, "edges_km: .*at least 2 edges"),
        ({"edges_km": np.array([0.0, 5.0, 5.0])}, "edges_km: .*rising"),
        ({"edges_km": np.array([-1.0, 5.0])}, "edges_km: .*rising from 0"),
        ({"edges_km": np.array([0.0, np.inf])}, "edges_km: wanted finite"),
        ({"edges_km": np.array([0.0, 1.0])}, "edges_km: no pair lies between 0 and 1 km; 3 places"),
        ({"other": V}, "other_latlon: wanted together with other, got None"),
        ({"other_latlon": PLACES}, "other: wanted together with other_latlon, got None"),
        ({"other": torch.ones(3, 2), "other_latlon": PLACES}, r"other: wanted shape \(n, 3\), got \(3, 2\)"),
        ({"estimator": "genton"}, "estimator: wanted one of matheron, .* got 'genton'"),
        ({"max_pairs": 0}, "max_pairs: .*got 0"),
        ({"seed": -1}, "seed: wanted a whole number of 0 or more, got -1"),
        ({"seed": 0.5}, "seed: wanted a whole number of 0 or more, got 0.5"),
        ({"edges_km": [[0.0], [1.0, 2.0]]}, "edges_km: wanted numbers, got"),
        ({"max_lag_km": 1.0}, "max_lag_km: .*got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        binned_semivariance(
            **{"embeddings": V, "latlon": PLACES, "edges_km": np.array([0.0, 150.0, 300.0]), **arguments}
        )
