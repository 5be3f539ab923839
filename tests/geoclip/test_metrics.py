import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics.pairwise import haversine_distances

from geoclip import metrics
from geoclip.metrics import compare_metrics, geolocation_metrics, geoscore, great_circle_km, mean_metrics

R = 6371.0088
KM_PER_DEGREE = R * math.pi / 180
KEYS = [
    "within_1_km",
    "within_25_km",
    "within_200_km",
    "within_750_km",
    "within_2500_km",
    "median_km",
    "mean_km",
    "geoscore",
]


def random_latlon(n, seed):
    rng = np.random.default_rng(seed)
    latitude = np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    return np.stack([latitude, rng.uniform(-180, 180, n)], axis=1)


def north_of_null_island(distances_km):
    """Predictions for the true place (0, 0) whose errors are exactly the given distances."""
    latitude = np.asarray(distances_km, dtype=float) / KM_PER_DEGREE
    return np.stack([latitude, np.zeros_like(latitude)], axis=1)


def errors(n, seed):
    """Errors of a plausible model, log-normal from streets to continents."""
    return np.minimum(np.random.default_rng(seed).lognormal(3.0, 2.5, n), 9_000)


# --- distance ---


def test_distance_equals_sklearn_on_random_places():
    a, b = random_latlon(3000, 0), random_latlon(3000, 1)
    pairs = np.concatenate(
        [haversine_distances(np.radians([p]), np.radians([q])) for p, q in zip(a, b, strict=True)]
    )
    np.testing.assert_allclose(great_circle_km(a, b), pairs[:, 0] * R, rtol=1e-9)


def test_distance_by_hand():
    a = [[0, 0], [0, 0], [90, 12], [48.0, 179.9], [10, 20], [10, 20], [60, 0]]
    b = [[0, 180], [0, 90], [-90, -70], [48.0, -179.9], [-10, -160], [10, -340], [60, 1]]
    chord_60 = 2 * math.sin(math.radians(0.5)) * 0.5
    chord_48 = 2 * math.sin(math.radians(0.1)) * math.cos(math.radians(48))
    wanted = [
        math.pi * R,
        math.pi * R / 2,
        math.pi * R,
        2 * R * math.asin(chord_48 / 2),
        math.pi * R,
        0,
        2 * R * math.asin(chord_60 / 2),
    ]
    np.testing.assert_allclose(great_circle_km(a, b), wanted, rtol=1e-12, atol=1e-9)


def test_distance_keeps_a_millimetre_near_zero_and_near_the_antipode():
    step = 1e-6 / KM_PER_DEGREE  # 1 mm
    near = great_circle_km([[45.0, 7.0]], [[45.0 + step, 7.0]])
    far = great_circle_km([[45.0, 7.0]], [[-45.0 + step, -173.0]])
    np.testing.assert_allclose(near, 1e-6, atol=1e-8)
    np.testing.assert_allclose(math.pi * R - far, 1e-6, atol=1e-7)


def test_distance_takes_tensors_and_returns_float64_numpy():
    a, b = random_latlon(50, 2), random_latlon(50, 3)
    from_tensors = great_circle_km(torch.from_numpy(a).requires_grad_(), torch.from_numpy(b))
    assert isinstance(from_tensors, np.ndarray)
    assert from_tensors.dtype == np.float64
    np.testing.assert_array_equal(from_tensors, great_circle_km(a, b))
    half = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    np.testing.assert_array_equal(great_circle_km(half, half), [0.0])


def test_geoscore_by_hand():
    np.testing.assert_allclose(
        geoscore([0, 1492.7, 2 * 1492.7, 20015.0]),
        [5000, 5000 / math.e, 5000 / math.e**2, 5000 * math.exp(-20015 / 1492.7)],
        rtol=1e-14,
    )


# --- metrics ---


def test_metrics_of_a_hand_made_case():
    distances = [0.5, 0.9, 20.0, 199.0, 201.0, 740.0, 2400.0, 9000.0]
    result = geolocation_metrics(north_of_null_island(distances), np.zeros((8, 2)), bootstrap=50)
    assert list(result) == KEYS
    value = {key: entry["value"] for key, entry in result.items()}
    assert [value[key] for key in KEYS[:5]] == [2 / 8, 3 / 8, 4 / 8, 6 / 8, 7 / 8]
    assert value["median_km"] == pytest.approx(200.0, rel=1e-9)
    assert value["mean_km"] == pytest.approx(sum(distances) / 8, rel=1e-9)
    assert value["geoscore"] == pytest.approx(
        sum(5000 * math.exp(-d / 1492.7) for d in distances) / 8, rel=1e-9
    )
    for entry in result.values():
        assert set(entry) == {"value", "low", "high"}
        assert all(type(number) is float for number in entry.values())
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_a_threshold_itself_counts_as_within():
    shares = metrics._statistics(np.array([1.0, 25.0, 200.0, 750.0, 2500.0]))[:5]
    np.testing.assert_array_equal(shares, [0.2, 0.4, 0.6, 0.8, 1.0])


def test_of_one_query_a_distance_has_no_width_and_a_share_nearly_all():
    result = geolocation_metrics([[10.0, 20.0]], [[10.0, 21.0]], bootstrap=10)
    for key in ("median_km", "mean_km", "geoscore"):
        assert result[key]["low"] == result[key]["value"] == result[key]["high"]
    z2 = stats.norm.ppf(0.975) ** 2  # Wilson's interval of 0 of n: [0, z²/(n + z²)]
    assert result["within_25_km"] == pytest.approx({"value": 0, "low": 0, "high": z2 / (1 + z2)}, abs=1e-12)
    assert result["within_200_km"] == pytest.approx({"value": 1, "low": 1 / (1 + z2), "high": 1}, abs=1e-12)


WITHIN = {"within_25_km": lambda d, axis: (d <= 25).mean(axis=axis)}
STATISTICS = {
    "median_km": lambda d, axis: np.median(d, axis=axis),
    "mean_km": lambda d, axis: d.mean(axis=axis),
    "geoscore": lambda d, axis: (5000 * np.exp(-d / 1492.7)).mean(axis=axis),
}


@pytest.mark.parametrize("key", STATISTICS)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_intervals_are_scipys_percentile_bootstrap(key, confidence):
    predicted, true = north_of_null_island(errors(83, 4)), np.zeros((83, 2))
    ours = geolocation_metrics(predicted, true, bootstrap=400, confidence=confidence, seed=7)[key]
    wanted = stats.bootstrap(
        (great_circle_km(predicted, true),),
        STATISTICS[key],
        n_resamples=400,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-10)


def test_means_have_scipys_percentile_bootstrap(monkeypatch):
    monkeypatch.setattr(metrics, "_RESAMPLED_AT_ONCE", 1000)  # in several chunks
    scores = np.random.default_rng(8).beta(2, 1, 83)
    ours = mean_metrics({"ap": scores}, bootstrap=400, confidence=0.8, seed=7)["ap"]
    wanted = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=400,
        confidence_level=0.8,
        method="percentile",
        rng=np.random.default_rng(7),
    )
    interval = wanted.confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert ours["value"] == pytest.approx(scores.mean(), rel=1e-12)


@pytest.mark.parametrize("key", {**WITHIN, **STATISTICS})
def test_differences_are_scipys_paired_bootstrap(key):
    statistic = {**WITHIN, **STATISTICS}[key]
    true = np.zeros((61, 2))
    a, b = north_of_null_island(errors(61, 5)), north_of_null_island(errors(61, 6) * 0.7)
    ours = compare_metrics(a, b, true, bootstrap=300, seed=3)[key]
    wanted = stats.bootstrap(
        (great_circle_km(a, true), great_circle_km(b, true)),
        lambda d_a, d_b, axis: statistic(d_b, axis) - statistic(d_a, axis),
        n_resamples=300,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-10, abs=1e-12)


def test_difference_is_b_minus_a_and_pairing_narrows_it():
    rng = np.random.default_rng(8)
    true = np.zeros((500, 2))
    hard = errors(500, 9)
    a, b = north_of_null_island(hard), north_of_null_island(hard * rng.uniform(0.8, 0.9, 500))
    difference = compare_metrics(a, b, true)
    alone_a, alone_b = geolocation_metrics(a, true), geolocation_metrics(b, true)
    for key in KEYS:
        assert difference[key]["value"] == pytest.approx(
            alone_b[key]["value"] - alone_a[key]["value"], abs=1e-12
        )
    # every error shrinks, so the paired interval excludes 0 although the two single intervals overlap
    assert difference["mean_km"]["high"] < 0
    assert difference["geoscore"]["low"] > 0
    assert alone_b["mean_km"]["high"] > alone_a["mean_km"]["low"]


def test_a_model_compared_with_itself_differs_by_exactly_nothing():
    predicted, true = random_latlon(200, 10), random_latlon(200, 11)
    for entry in compare_metrics(predicted, predicted, true, bootstrap=100).values():
        assert entry == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_same_seed_same_interval_whatever_the_chunk(monkeypatch):
    predicted, true = north_of_null_island(errors(77, 12)), np.zeros((77, 2))
    whole = geolocation_metrics(predicted, true, bootstrap=101, seed=1)
    assert geolocation_metrics(predicted, true, bootstrap=101, seed=2) != whole
    monkeypatch.setattr(metrics, "_RESAMPLED_AT_ONCE", 77 * 3)
    assert geolocation_metrics(predicted, true, bootstrap=101, seed=1) == whole


def test_intervals_cover_the_truth_about_as_often_as_promised():
    # 300 small experiments at 90 %: covers are binomial, 270 ± 5.2, a little fewer for a percentile interval
    rng = np.random.default_rng(13)
    truth = {"within_25_km": 0.4, "mean_km": 100.0}
    covers = dict.fromkeys(truth, 0)
    for repeat in range(300):
        distances = rng.exponential(100.0, 120)
        distances_25 = np.where(rng.random(120) < 0.4, 10.0, 50.0)
        by_mean = geolocation_metrics(
            north_of_null_island(distances), np.zeros((120, 2)), bootstrap=200, confidence=0.9, seed=repeat
        )
        by_share = geolocation_metrics(
            north_of_null_island(distances_25), np.zeros((120, 2)), bootstrap=200, confidence=0.9, seed=repeat
        )
        covers["mean_km"] += by_mean["mean_km"]["low"] <= truth["mean_km"] <= by_mean["mean_km"]["high"]
        covers["within_25_km"] += (
            by_share["within_25_km"]["low"] <= truth["within_25_km"] <= by_share["within_25_km"]["high"]
        )
    assert 249 <= covers["mean_km"] <= 288
    assert 249 <= covers["within_25_km"] <= 288


# --- bad input ---

GOOD = [[1.0, 2.0], [3.0, 4.0]]
BAD_PLACES = {
    "one row more": ([[1.0, 2.0]] * 3, r"\(3, 2\)"),
    "three columns": ([[1.0, 2.0, 3.0]] * 2, r"\(2, 3\)"),
    "flat": ([1.0, 2.0], r"\(2,\)"),
    "empty": (np.empty((0, 2)), r"\(0, 2\)"),
    "nan": ([[1.0, 2.0], [np.nan, 2.0]], r"row 2.*nan.*finite"),
    "infinite": ([[1.0, np.inf], [3.0, 2.0]], r"row 1.*inf.*finite"),
    "latitude": ([[1.0, 2.0], [-90.5, 2.0]], r"row 2.*-90\.5.*±90"),
    "text": ([["north", "east"]] * 2, "numbers"),
    "ragged": ([[1.0, 2.0], [3.0]], "numbers"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places_are_refused_by_name(case):
    bad, message = BAD_PLACES[case]
    with pytest.raises(ValueError, match=f"latlon_a.*{message}"):
        great_circle_km(bad, GOOD)
    with pytest.raises(ValueError, match=r"latlon_b|latlon_a"):
        great_circle_km(GOOD, bad)
    with pytest.raises(ValueError, match=f"predicted_latlon.*{message}"):
        geolocation_metrics(bad, GOOD)
    with pytest.raises(ValueError, match=f"predicted_a.*{message}"):
        compare_metrics(bad, GOOD, GOOD)
    with pytest.raises(ValueError, match=f"predicted_b.*{message}"):
        compare_metrics(GOOD, bad, GOOD)


def test_bad_options_are_refused_by_name():
    with pytest.raises(ValueError, match=r"bootstrap.*at least 1.*0"):
        geolocation_metrics(GOOD, GOOD, bootstrap=0)
    for confidence in (0.0, 1.0, 95, math.nan):
        with pytest.raises(ValueError, match=r"confidence.*between 0 and 1"):
            geolocation_metrics(GOOD, GOOD, confidence=confidence)
        with pytest.raises(ValueError, match=r"confidence.*between 0 and 1"):
            compare_metrics(GOOD, GOOD, GOOD, confidence=confidence)
    with pytest.raises(ValueError, match=r"bootstrap.*at least 1.*0"):
        mean_metrics({"ap": np.ones(3)}, bootstrap=0)
    with pytest.raises(ValueError, match=r"distance_km.*at least 0"):
        geoscore([1.0, -2.0])
    with pytest.raises(ValueError, match=r"distance_km.*at least 0"):
        geoscore([1.0, math.nan])
