"""The definitions once more, pair by pair in plain Python floats: slow, and independent of torch.

Written from the definitions, not from the package; it shares no line with it.
"""

from __future__ import annotations

import math

R = 6371.0088


def haversine_km(a, b):
    (lat1, lon1), (lat2, lon2) = ((math.radians(t) for t in place) for place in (a, b))
    s = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * R * math.asin(min(1.0, math.sqrt(s)))


def dissimilarity(v, u):
    """1 − cos, or None where one of the two is no image."""
    a, b = math.sqrt(sum(t * t for t in v)), math.sqrt(sum(t * t for t in u))
    if a == 0 or b == 0:
        return None
    return 1 - sum(s * t for s, t in zip(v, u, strict=True)) / (a * b)


def stable_correlation(h, len_scale, alpha):
    return math.exp(-((h / len_scale) ** alpha))


def terms(policy, h, d, nugget, psill, rho):
    """(a, b, f) of a negative pair; `policy` is (name, dict of parameters)."""
    name, t = policy
    if name == "none":
        return 1.0, 0.0, 0.0
    if name == "distance":
        return 1.0, math.log(1 + t["strength"] * math.exp(-h / t["scale_km"])), 0.0
    if name == "distance_linear":
        return 1.0, -t["weight"] * math.exp(-h / t["scale_km"]), 0.0
    if d is None:  # no image: the place alone speaks
        return 1.0, t.get("far", 0.0) * (1 - rho), 0.0
    gamma = nugget + psill * (1 - rho)
    e = gamma - d
    if name == "penalty":
        return (math.exp(max(0.0, -e)) if h <= t["range_km"] else 1.0), 0.0, 0.0
    e_plus = max(0.0, e - t.get("tolerance", 0.0))
    if name == "semivariogram":
        return 1.0, e_plus * (t["hard"] * (1 - rho) - t["false"] * rho), 0.0
    if name == "explained":
        alike = max(0.0, 1 - d / (nugget + psill))
        return 1.0, (1 - rho) * (t["hard"] * e_plus + t.get("far", 0.0)) - t["false"] * rho * alike, 0.0
    if name == "threshold":
        return 1.0, t["hard"] * e_plus if h > t["range_km"] else -t["false"] * e_plus, 0.0
    assert name == "rectify"
    f = t["mass"] * min(1.0, e_plus / gamma) * rho if gamma > 0 else 0.0
    return 1.0, e_plus * (t["hard"] * (1 - rho) - t["false"] * rho), f


def cross_entropy(logits, positive, masses, live, epsilon):
    """logΣexp − ΣT·l over the live entries."""
    entries = [j for j in range(len(logits)) if live[j]]
    top = max(logits[j] for j in entries)
    log_sum_exp = top + math.log(sum(math.exp(logits[j] - top) for j in entries))
    mass = {j: 1.0 if j == positive else masses[j] for j in entries}
    total = sum(mass.values())
    return log_sum_exp - sum(
        ((1 - epsilon) * mass[j] / total + epsilon / len(entries)) * logits[j] for j in entries
    )


def info_nce(
    x, y, scale, query_latlon, gallery_latlon, v, u, model, policy, targets, exclude, epsilon, symmetric
):
    """Losses of all queries; `x`, `y` are unit vectors, `model` is (nugget, psill, len_scale_km, alpha)."""
    nugget, psill, len_scale, alpha = model
    n, m = len(x), len(y)
    logits = [[0.0] * m for _ in range(n)]
    masses = [[0.0] * m for _ in range(n)]
    live = [[j not in exclude[i] for j in range(m)] for i in range(n)]
    for i in range(n):
        for j in range(m):
            similarity = scale * sum(s * t for s, t in zip(x[i], y[j], strict=True))
            if j == targets[i]:
                logits[i][j] = similarity
                continue
            h = haversine_km(query_latlon[i], gallery_latlon[j])
            rho = stable_correlation(h, len_scale, alpha)
            a, b, masses[i][j] = terms(policy, h, dissimilarity(v[i], u[j]), nugget, psill, rho)
            logits[i][j] = a * similarity + b
    losses = [cross_entropy(logits[i], targets[i], masses[i], live[i], epsilon) for i in range(n)]
    if not symmetric:
        return losses
    columns = {}
    for j in range(m):
        columns[j] = cross_entropy(
            [logits[i][j] for i in range(n)],
            targets.index(j),
            [masses[i][j] for i in range(n)],
            [live[i][j] for i in range(n)],
            epsilon,
        )
    return [(losses[i] + columns[targets[i]]) / 2 for i in range(n)]
