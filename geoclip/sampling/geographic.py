"""The nearest places of every place on the ground, exactly, without a matrix of all distances."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geoclip.coordinates import check_latlon, unit_vectors

Table = NDArray[np.int32]

_PLACES_AT_ONCE = 4096  # 10 MB of candidates at k = 128
_SPARE = 8  # candidates beyond those asked for: places that lie equally far are ordered by their row


def geographic_neighbours(latlon: NDArray[np.float64], k: int = 128, *, workers: int = -1) -> Table:
    """The k rows nearest to every row by great-circle distance.

    Chords of float64 unit vectors, which order pairs as arcs do, in a k-d tree: the order is that of a
    float64 brute force down to a nanometre on the ground. Rows that are equally far come in the order of
    their index; rows at the very same place are each other's neighbours, at distance 0. The row itself is
    none.

    Args:
        latlon: (N, 2) latitude and longitude in degrees.
        k: neighbours per row.
        workers: threads; −1 takes all cores.

    Returns:
        (N, k) int32 rows, nearest first; −1 where there are fewer than k others.

    Raises:
        ValueError: `latlon` is not (N, 2) finite degrees with 2 ≤ N < 2³¹, or k below 1.
    """
    check_latlon(latlon, "latlon")
    if k < 1:
        raise ValueError(f"k: wanted at least 1 neighbour, got {k}")
    if not 2 <= len(latlon) < 2**31:
        raise ValueError(f"latlon: wanted at least 2 and fewer than 2³¹ places, got {len(latlon)}")
    # many photos may share a place; the tree holds each place once
    vectors, place, counts = np.unique(
        _place_vectors(latlon), axis=0, return_inverse=True, return_counts=True
    )
    rows = np.argsort(place.reshape(-1), kind="stable").astype(np.int32)  # by place, then by index
    first = np.concatenate(([0], np.cumsum(counts)))
    tree = cKDTree(vectors)
    wanted = min(k + 1, len(latlon))  # the row itself is found too
    candidates = min(wanted + _SPARE, len(vectors))
    nearest = np.full((len(latlon), k), -1, dtype=np.int32)
    # in the tree's order: the queries of a chunk visit the same leaves
    for start in range(0, len(vectors), _PLACES_AT_ONCE):
        chunk = tree.indices[start : start + _PLACES_AT_ONCE]
        chord, found = tree.query(vectors[chunk], k=candidates, workers=workers)
        near = _nearest_rows(
            chord.reshape(len(chunk), candidates), found.reshape(len(chunk), candidates), rows, first, wanted
        )
        own = np.repeat(np.arange(len(chunk)), counts[chunk])  # of which place in the chunk each row is
        members = _ranges(first[chunk], counts[chunk])
        nearest[rows[members], : wanted - 1] = _without(near[own], rows[members])
    return nearest


def _nearest_rows(
    chord: NDArray[np.float64], found: NDArray[np.intp], rows: Table, first: NDArray[np.intp], wanted: int
) -> Table:
    """(places, wanted) rows at the found places, whose chords rise, ordered by chord, then by row."""
    counts = np.minimum(first[found + 1] - first[found], wanted)
    nearest = np.empty((len(found), wanted), dtype=np.int32)
    # most places have one row, and no two candidates are equally far
    plain = (counts == 1).all(axis=1) & (chord[:, 1:] > chord[:, :-1]).all(axis=1)
    nearest[plain] = rows[first[found[plain, :wanted]]]
    chord, found, counts = chord[~plain], found[~plain], counts[~plain]
    places = np.arange(len(found))
    enough = (counts.cumsum(axis=1) >= wanted).argmax(axis=1)  # here the wanted number is reached
    near = chord <= chord[places, enough][:, None]
    counts = counts[near]
    candidates = rows[_ranges(first[found[near]], counts)]
    of_place = np.repeat(near.nonzero()[0], counts)
    order = np.lexsort((candidates, np.repeat(chord[near], counts), of_place))
    start = np.searchsorted(of_place, places)
    nearest[~plain] = candidates[order][start[:, None] + np.arange(wanted)]
    return nearest


def _without(near: Table, own: Table) -> Table:
    """Drop from each row of `near` its own index or, where duplicates crowd it out, the last."""
    keep = near != own[:, None]
    keep[keep.all(axis=1), -1] = False
    others: Table = near[keep].reshape(len(near), -1)
    return others


def _ranges(start: NDArray[np.intp], counts: NDArray[np.intp]) -> NDArray[np.intp]:
    """start[0], start[0] + 1, …, counts[0] of them, then those from start[1], and so on."""
    before = counts.cumsum() - counts
    return np.repeat(start - before, counts) + np.arange(counts.sum())


def _place_vectors(latlon: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) float64; the same place written differently (±180°, a pole) gets the same numbers."""
    latitude = latlon[:, 0].astype(np.float64)
    longitude = np.remainder(latlon[:, 1].astype(np.float64) + 180, 360) - 180
    longitude[np.abs(latitude) == 90] = 0.0
    vectors: NDArray[np.float64] = unit_vectors(np.column_stack([latitude, longitude]))
    return vectors + 0.0  # -0.0 becomes 0.0
