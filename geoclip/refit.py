"""The semivariogram fitted again during training, from the photos that the queue holds or from the data."""

from __future__ import annotations

import warnings

import torch

from semivario_kernels import VariogramModel, binned_semivariance, fit_variogram, log_edges_km

# bins for some thousand places: the first one holds what lies within 10 km
_EDGES_KM = (10.0, 20_000.0, 24)


def refit_variogram(
    latlon: torch.Tensor, embeddings: torch.Tensor, previous: VariogramModel | None
) -> VariogramModel | None:
    """Measure all pairs and fit a model of the previous one's kind, else a stable one in chord distance.

    Args:
        latlon: (n, 2) latitude and longitude in degrees.
        embeddings: (n, E) of the photos taken there.
        previous: what stays in force, with a warning, where the pairs hold no resolvable range.

    Returns:
        The new model, or `previous`.
    """
    kind, metric = ("stable", "chord") if previous is None else (previous.kind, previous.metric)
    try:
        measured = binned_semivariance(
            embeddings.float().cpu().numpy(), latlon.cpu().numpy(), edges_km=log_edges_km(*_EDGES_KM)
        )
        fit = fit_variogram(measured, kind, metric=metric)
        problem = None if fit.resolvable else f"no resolvable range: {fit.note}"
    except (ValueError, RuntimeError) as error:
        problem = str(error)
    else:
        if problem is None:
            return fit.model
    kept = "plain InfoNCE goes on" if previous is None else "the previous semivariogram stays"
    warnings.warn(f"refit of the semivariogram: {problem}; {kept}", stacklevel=2)
    return previous
