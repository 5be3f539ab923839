"""Does a policy's log-weight find hard and false negatives? Average precision on planted ones, 1 % each.

A pool of pairs of the synthetic world, rendered as pictures, holds 1 % hard negatives (photos of one spot,
up to 25 km, of twin towns), 1 % false negatives (photos up to 25 km apart that both show their places), 18 %
near pairs that are none (one of the two photos shows nothing of its place) and, for the rest, pairs at
random. The semivariogram is fitted on all photos and knows nothing of what was planted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from benchmarks.accuracy.rendered import rendered
from benchmarks.accuracy.synthetic import Photos, make_photos, measured
from benchmarks.table import table
from geoclip.metrics import great_circle_km
from semivario_kernels import NegativePolicy, VariogramModel, fit_variogram

PREVALENCE = 0.01
NEAR_KM = 25.0
NEAR_OTHERS = 0.18
KINDS = ("hard negatives", "false negatives")
# the score of one kind is the log-weight with the other strength at 0
SCORED = {
    "explained": {
        KINDS[0]: NegativePolicy.explained(1, 0, far=0),
        KINDS[1]: NegativePolicy.explained(0, 1, far=0),
    },
    "semivariogram": {
        KINDS[0]: NegativePolicy.semivariogram(1, 0),
        KINDS[1]: NegativePolicy.semivariogram(0, 1),
    },
    "threshold": {
        KINDS[0]: NegativePolicy.threshold(1, 0, 25.0),
        KINDS[1]: NegativePolicy.threshold(0, 1, 25.0),
    },
}


def detect(
    *, pool: int = 20_000, towns: int = 400, per_town: int = 24, seed: int = 0
) -> list[dict[str, Any]]:
    """Average precision of every way to rank the pairs of one pool.

    Args:
        pool: pairs.
        towns: of the world.
        per_town: photos of each.
        seed: of the world and of the pool.

    Returns:
        A row per kind of negative and way of ranking: "kind", "score", "average_precision".
    """
    photos = rendered(make_photos(towns, per_town, seed), seed)
    empirical = measured(photos, seed)
    i, j, truth = planted_pool(photos, pool, np.random.default_rng(seed))
    h_km = great_circle_km(photos.latlon[i], photos.latlon[j])
    d = 1 - np.einsum("ne,ne->n", photos.embeddings[i], photos.embeddings[j]).astype(np.float64)
    rows = []
    for variogram in ("stable", "nested"):
        model = fit_variogram(empirical, variogram).model
        for kind in KINDS:
            ways = {
                f"{name}, {variogram} variogram": np.abs(_log_weight(policies[kind], model, h_km, d))
                for name, policies in SCORED.items()
            }
            if variogram == "stable":
                ways["dissimilarity alone"] = -d
                ways["distance alone"] = h_km if kind == KINDS[0] else -h_km
            for name, score in ways.items():
                precision = float(average_precision_score(truth[kind], score))
                rows.append({"kind": kind, "score": name, "average_precision": precision, "seed": seed})
    return rows


def markdown(result: dict[str, Any]) -> str:
    """A table of mean and lowest average precision over the seeds."""
    precisions: dict[tuple[str, str], list[float]] = {}
    for row in result["rows"]:
        precisions.setdefault((row["kind"], row["score"]), []).append(row["average_precision"])
    seeds = {row["seed"] for row in result["rows"]}
    return "\n".join(
        [
            f"# Detection of planted negatives: {result['date']}",
            "",
            f"Average precision over {len(seeds)} worlds and pools, {PREVALENCE:.0%} of the pairs each. The "
            "photos are rendered pictures, seen through a fixed encoder.",
            "",
            *table(
                ["what", "ranked by", "mean", "lowest"],
                [{"key": key, "values": values} for key, values in sorted(precisions.items())],
                lambda row: [
                    *row["key"],
                    f"{np.mean(row['values']):.3f}",
                    f"{min(row['values']):.3f}",
                ],
            ),
            "",
        ]
    )


def planted_pool(
    photos: Photos, pool: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.bool_]]]:
    """Pairs (i, j), (pool,) each, and which of them are negatives of each kind."""
    wanted = {
        KINDS[0]: round(PREVALENCE * pool),
        KINDS[1]: round(PREVALENCE * pool),
        "near others": round(NEAR_OTHERS * pool),
    }
    wanted["random"] = pool - sum(wanted.values())
    firsts, seconds, labels = [], [], []
    for label, count in wanted.items():
        i, j = _drawn(photos, label, count, rng)
        firsts.append(i)
        seconds.append(j)
        labels += [label] * count
    names = np.array(labels)
    return np.concatenate(firsts), np.concatenate(seconds), {kind: names == kind for kind in KINDS}


def _drawn(
    photos: Photos, label: str, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` pairs that are what the label says, drawn by rejection."""
    n = len(photos.latlon)
    per_town = np.bincount(photos.town)[0]  # towns are of one size and lie one after the other
    i_all: list[NDArray[np.int64]] = []
    j_all: list[NDArray[np.int64]] = []
    while sum(map(len, i_all)) < count:
        i = rng.integers(0, n, 4 * count)
        if label == "random":
            j = rng.integers(0, n, len(i))
            near = photos.town[i] == photos.town[j]
            fits = ~near & (photos.twin[i] != photos.town[j])
        else:
            town = photos.twin[i] if label == KINDS[0] else photos.town[i]
            j = town * per_town + rng.integers(0, per_town, len(i))
            both = photos.typical[i] & photos.typical[j]
            if label == KINDS[0]:
                # twins look alike at the same spot, not throughout
                spot = great_circle_km(photos.look[i], photos.look[j])
                fits = (town >= 0) & both & (spot <= NEAR_KM)
            else:
                close = great_circle_km(photos.latlon[i], photos.latlon[j]) <= NEAR_KM
                fits = close & (i != j) & (both if label == KINDS[1] else ~both)
        i_all.append(i[fits])
        j_all.append(j[fits])
    return np.concatenate(i_all)[:count], np.concatenate(j_all)[:count]


def _log_weight(
    policy: NegativePolicy, model: VariogramModel, h_km: NDArray[np.float64], d: NDArray[np.float64]
) -> NDArray[np.float64]:
    h, dissimilarity = torch.from_numpy(h_km), torch.from_numpy(d)
    gamma, rho = (torch.as_tensor(values) for values in (model(h_km), model.correlation(h_km)))
    weight = policy.torch_terms(h, dissimilarity, gamma, rho, model.sill).log_weight
    assert weight is not None
    return weight.numpy()
