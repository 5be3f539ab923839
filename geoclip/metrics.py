"""How good predicted places are: distances, accuracies and GeoScore, each with an interval.

Shares of the queries have Wilson's interval (1927), which is honest where no query or every one is right, as
happens in small groups: of 0 right in 16 the bootstrap would be certain. All else has percentile bootstrap
intervals over the queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from geoclip.coordinates import check_latlon, unit_vectors
from semivario_kernels import EARTH_RADIUS_KM

GEOSCORE_MAXIMUM = 5000.0
GEOSCORE_SCALE_KM = 1492.7

# the usual rings of the field: street, city, region, country, continent (Im2GPS)
THRESHOLDS_KM = (1, 25, 200, 750, 2500)

# One resampled distance costs about 40 bytes while the statistics are taken: 2**20 of them stay below 64 MB.
_RESAMPLED_AT_ONCE = 2**20

FloatArray: TypeAlias = NDArray[np.float64]
Metrics: TypeAlias = dict[str, dict[str, float]]


def great_circle_km(latlon_a: ArrayLike | torch.Tensor, latlon_b: ArrayLike | torch.Tensor) -> FloatArray:
    """Great-circle distance between the rows of two lists of places.

    h = 2R·atan2(‖p−q‖, ‖p+q‖) of unit vectors p, q in float64: micrometres at every distance, where the
    haversine formula loses digits near the antipode and the arc cosine near zero.

    Args:
        latlon_a: (n, 2) latitude and longitude in degrees.
        latlon_b: (n, 2) latitude and longitude in degrees.

    Returns:
        (n,) distances in km on a sphere of radius 6371.0088 km.

    Raises:
        ValueError: wrong or different shapes, no rows, NaN or infinite values, a latitude outside ±90,
            a longitude outside ±360.
    """
    a, b = _latlon("latlon_a", latlon_a), _latlon("latlon_b", latlon_b)
    _same_rows("latlon_a", a, "latlon_b", b)
    return _distance_km(a, b)


def geoscore(distance_km: ArrayLike | torch.Tensor) -> FloatArray:
    """GeoGuessr-style score 5000·exp(−d / 1492.7 km) of OpenStreetView-5M.

    Args:
        distance_km: distances in km, any shape.

    Returns:
        Scores between 0 and 5000, same shape.

    Raises:
        ValueError: a distance is negative or NaN.
    """
    distance = _float64("distance_km", distance_km)
    if not (distance >= 0).all():
        raise ValueError(f"distance_km: wanted distances of at least 0 km, got {distance.min()}")
    return GEOSCORE_MAXIMUM * np.exp(-distance / GEOSCORE_SCALE_KM)


def geolocation_metrics(
    predicted_latlon: ArrayLike | torch.Tensor,
    true_latlon: ArrayLike | torch.Tensor,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Metrics:
    """Accuracy within 1, 25, 200, 750 and 2500 km, median and mean error, mean GeoScore.

    Args:
        predicted_latlon: (n, 2) predicted latitude and longitude in degrees.
        true_latlon: (n, 2) true latitude and longitude in degrees.
        bootstrap: number of resamples, for the intervals of what is no share of the queries.
        confidence: coverage wanted of the intervals, between 0 and 1.
        seed: seed of the resampling.

    Returns:
        By name, "within_1_km", …, "within_2500_km", "median_km", "mean_km" and "geoscore", a dictionary of
        "value", "low" and "high". "within_*" are fractions; a distance equal to the threshold counts as
        within.

    Raises:
        ValueError: places as in `great_circle_km`, `bootstrap` below 1, `confidence` outside (0, 1).
    """
    _check_resampling(bootstrap, confidence)
    predicted, true = _latlon("predicted_latlon", predicted_latlon), _latlon("true_latlon", true_latlon)
    _same_rows("predicted_latlon", predicted, "true_latlon", true)
    distance = _distance_km(predicted, true)[None]
    metrics = _with_interval(
        _statistics(distance)[:, 0], _resampled_statistics(distance, bootstrap, seed)[:, 0], confidence
    )
    within = {_within(threshold): distance[0] <= threshold for threshold in THRESHOLDS_KM}
    return {**metrics, **share_metrics(within, confidence=confidence)}


def compare_metrics(
    predicted_a: ArrayLike | torch.Tensor,
    predicted_b: ArrayLike | torch.Tensor,
    true_latlon: ArrayLike | torch.Tensor,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Metrics:
    """Paired differences b − a of every metric between two models on the same queries, all by bootstrap.

    Each resample draws the same queries for both models, so that what makes a query hard cancels out.

    Args:
        predicted_a: (n, 2) predictions of the first model in degrees.
        predicted_b: (n, 2) predictions of the second model in degrees.
        true_latlon: (n, 2) true latitude and longitude in degrees.
        bootstrap: number of resamples.
        confidence: coverage wanted of the intervals, between 0 and 1.
        seed: seed of the resampling.

    Returns:
        The keys of `geolocation_metrics`, each with the difference's "value", "low" and "high".

    Raises:
        ValueError: as in `geolocation_metrics`.
    """
    _check_resampling(bootstrap, confidence)
    a, b = _latlon("predicted_a", predicted_a), _latlon("predicted_b", predicted_b)
    true = _latlon("true_latlon", true_latlon)
    _same_rows("predicted_a", a, "true_latlon", true)
    _same_rows("predicted_b", b, "true_latlon", true)
    distance = np.stack([_distance_km(a, true), _distance_km(b, true)])
    value = _statistics(distance)
    resampled = _resampled_statistics(distance, bootstrap, seed)
    return _with_interval(value[:, 1] - value[:, 0], resampled[:, 1] - resampled[:, 0], confidence)


def share_metrics(hits: Mapping[str, NDArray[np.bool_]], *, confidence: float = 0.95) -> Metrics:
    """Shares of queries that are right, with Wilson's intervals.

    Args:
        hits: name to (n,) whether each query is right; those of no query are left out of the result.
        confidence: coverage wanted of the intervals, between 0 and 1.

    Returns:
        {name: {"value", "low", "high"}}.

    Raises:
        ValueError: `confidence` outside (0, 1).
    """
    _check_confidence(confidence)
    metrics = {}
    for name, right in hits.items():
        if len(right):
            interval = binomtest(int(right.sum()), len(right)).proportion_ci(confidence, "wilson")
            low, high = float(interval.low), float(interval.high)
            metrics[name] = {"value": float(right.mean()), "low": low, "high": high}
    return metrics


def mean_metrics(
    values: Mapping[str, FloatArray], *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Metrics:
    """Means over queries, with percentile bootstrap intervals.

    Args:
        values: name to (n,) what each query scored; n is at least 1.
        bootstrap: number of resamples.
        confidence: coverage wanted of the intervals, between 0 and 1.
        seed: seed of the resampling; all names share a resample's queries where they have as many.

    Returns:
        {name: {"value", "low", "high"}}.

    Raises:
        ValueError: `bootstrap` below 1, `confidence` outside (0, 1).
    """
    _check_resampling(bootstrap, confidence)
    metrics = {}
    for name, scores in values.items():
        rng, at_once = np.random.default_rng(seed), max(1, _RESAMPLED_AT_ONCE // len(scores))
        means = [
            scores[rng.integers(0, len(scores), (min(at_once, bootstrap - start), len(scores)))].mean(axis=1)
            for start in range(0, bootstrap, at_once)
        ]
        low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
        metrics[name] = {"value": float(scores.mean()), "low": float(low), "high": float(high)}
    return metrics


def _check_resampling(bootstrap: int, confidence: float) -> None:
    if bootstrap < 1:
        raise ValueError(f"bootstrap: wanted at least 1 resample, got {bootstrap}")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: wanted a number between 0 and 1, got {confidence}")


def _within(threshold_km: int) -> str:
    return f"within_{threshold_km}_km"


_KEYS = (*map(_within, THRESHOLDS_KM), "median_km", "mean_km", "geoscore")


def _statistics(distance_km: FloatArray) -> FloatArray:
    """(…, n) distances to (len(_KEYS), …) metrics."""
    within = [(distance_km <= threshold).mean(axis=-1) for threshold in THRESHOLDS_KM]
    return np.stack(
        [
            *within,
            np.median(distance_km, axis=-1),
            distance_km.mean(axis=-1),
            geoscore(distance_km).mean(axis=-1),
        ]
    )


def _resampled_statistics(distance_km: FloatArray, bootstrap: int, seed: int) -> FloatArray:
    """(runs, n) distances to (len(_KEYS), runs, bootstrap) metrics; all runs share a resample's queries."""
    runs, n = distance_km.shape
    rng = np.random.default_rng(seed)
    at_once = max(1, _RESAMPLED_AT_ONCE // (runs * n))
    parts = []
    for start in range(0, bootstrap, at_once):
        rows = rng.integers(0, n, (min(at_once, bootstrap - start), n))
        # take, not [:, rows], whose result would interleave the runs in memory and slow every reduction
        parts.append(_statistics(np.take(distance_km, rows, axis=1)))
    return np.concatenate(parts, axis=-1)


def _with_interval(value: FloatArray, resampled: FloatArray, confidence: float) -> Metrics:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    return {
        key: {"value": float(value[k]), "low": float(low[k]), "high": float(high[k])}
        for k, key in enumerate(_KEYS)
    }


def _distance_km(a: FloatArray, b: FloatArray) -> FloatArray:
    p, q = unit_vectors(a), unit_vectors(b)
    chord, other_chord = np.linalg.norm(p - q, axis=1), np.linalg.norm(p + q, axis=1)
    distance: FloatArray = 2 * EARTH_RADIUS_KM * np.arctan2(chord, other_chord)
    return distance


def _float64(name: str, value: ArrayLike | torch.Tensor) -> FloatArray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    try:
        array: FloatArray = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: wanted numbers, got {type(value).__name__} ({error})") from error
    return array


def _latlon(name: str, value: ArrayLike | torch.Tensor) -> FloatArray:
    latlon = _float64(name, value)
    check_latlon(latlon, name)
    if len(latlon) == 0:
        raise ValueError(f"{name}: wanted at least one place, got shape {latlon.shape}")
    return latlon


def _same_rows(name_a: str, a: FloatArray, name_b: str, b: FloatArray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{name_a}: wanted one row per row of {name_b} {b.shape}, got {a.shape}")
