"""Neighbours by what an encoder makes of the training places: dynamic sampling."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from geoclip.sampling import similarity_neighbours, surprise_neighbours
from geoclip.sampling.geographic import Table
from semivario_kernels import VariogramModel, binned_semivariance, fit_variogram, log_edges_km

# from VIGOR's 70 m between places to CVUSA's continent; empty bins do not count in the fit. Without the bin
# from 0 km, where a place's query and its own reference lie
_EDGES_KM = log_edges_km(0.05, 20_000.0, 40)[1:]
_PAIRS = 200_000_000  # measured at most
_CANDIDATES = 4  # times the neighbours wanted are ranked by surprise


def similar_places(queries: torch.Tensor, references: torch.Tensor, k: int) -> tuple[Table, None]:
    """Places whose references each place's query is most easily mistaken for.

    Args:
        queries: (P, D) feature of every place's queries.
        references: (P, D) of its reference.
        k: places per row.

    Returns:
        (P, k) places, and None: there are none to avoid.

    Raises:
        ValueError: as in `similarity_neighbours`.
    """
    return similarity_neighbours(queries, k, references), None


def surprising_places(
    queries: torch.Tensor, references: torch.Tensor, latlon: NDArray[np.float64], k: int
) -> tuple[Table, Table | None]:
    """Neighbours by surprise under the semivariogram of the features themselves, measured across the views.

    Args:
        queries: (P, D) feature of every place's queries.
        references: (P, D) of its reference.
        latlon: (P, 2) degrees.
        k: places per row.

    Returns:
        (P, k) places of which the most similar are more alike than their distance explains, and (P, k) that
        are alike because they are near and should not share a batch; those of `similar_places`, with a
        warning, where the features hold no resolvable range.
    """
    try:
        model = cross_variogram(queries, latlon, references, latlon)
    except (ValueError, RuntimeError) as error:
        warnings.warn(f"{error}; similarity alone decides", stacklevel=2)
        return similar_places(queries, references, k)
    hard, false = surprise_neighbours(
        queries, latlon, model, k, candidates=_CANDIDATES * k, references=references
    )
    return hard, false


def cross_variogram(
    queries: torch.Tensor,
    query_latlon: NDArray[np.float64],
    references: torch.Tensor,
    reference_latlon: NDArray[np.float64],
) -> VariogramModel:
    """The semivariogram of the features themselves, measured across the views and fitted.

    Args:
        queries: (N, D) features.
        query_latlon: (N, 2) degrees.
        references: (M, D) features.
        reference_latlon: (M, 2) degrees.

    Raises:
        ValueError: there are no pairs of places apart, or the features hold no resolvable range.
        RuntimeError: the fit failed.
    """
    measured = binned_semivariance(
        queries,
        torch.from_numpy(query_latlon).to(queries.device),
        other=references,
        other_latlon=torch.from_numpy(reference_latlon).to(queries.device),
        edges_km=_EDGES_KM,
        max_pairs=_PAIRS,
    )
    fit = fit_variogram(measured, metric="chord")  # in which every stable model is valid
    if not fit.resolvable:
        raise ValueError(f"semivariogram of the features: no resolvable range: {fit.note}")
    return fit.model
