"""A few compilations in which every kernel, architecture, dtype, policy and variogram kind occurs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

Traits = frozenset[Hashable]


def covering(traits: Sequence[Traits], limit: int) -> list[int]:
    """Indices of at most `limit` entries, chosen greedily: first every trait, then as many pairs as fit.

    Args:
        traits: what each entry would cover.
        limit: how many may be chosen.

    Returns:
        Rising indices; fewer than `limit` where those already cover every pair that occurs.

    Raises:
        ValueError: `limit` entries do not hold every trait.
    """
    chosen: list[int] = []
    missing = set().union(*traits)
    pairs = [{frozenset(pair) for pair in combinations(entry, 2)} for entry in traits]
    missing_pairs = set().union(*pairs)
    while (missing or missing_pairs) and len(chosen) < limit:
        best = max(
            (k for k in range(len(traits)) if k not in chosen),
            key=lambda k: (len(traits[k] & missing), len(pairs[k] & missing_pairs)),
        )
        chosen.append(best)
        missing -= traits[best]
        missing_pairs -= pairs[best]
    if missing:
        raise ValueError(f"limit: {limit} compilations leave out {sorted(map(str, missing))}")
    return sorted(chosen)
