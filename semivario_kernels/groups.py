"""Local semivariograms: one for each group of places, such as a continent or a country."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from semivario_kernels.checks import ArrayLike, check_latlon, check_matrix, check_number, check_same
from semivario_kernels.dissimilarity import has_image
from semivario_kernels.empirical_variogram import EmpiricalVariogram
from semivario_kernels.semivariance import Estimator, NoPairError, binned_semivariance

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def grouped_semivariance(
    embeddings: ArrayLike,
    latlon: ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any] | torch.Tensor,
    *,
    edges_km: ArrayLike,
    min_places: int = 30,
    estimator: Estimator = "matheron",
    max_lag_km: float | None = None,
    max_pairs: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> dict[Any, EmpiricalVariogram]:
    """Semivariograms of the pairs inside each group; pairs between groups are not measured.

    The cost is Σ n_g² over the groups, not N².

    Args:
        embeddings: (N, E) vectors of any length; all-zero rows mean "no image" and do not count.
        latlon: (N, 2) latitude and longitude in degrees.
        groups: (N,) labels that can be sorted, for example strings or integers: a list, an array, a pandas
            Series or a tensor. Rows labelled None or NaN belong to no group, as in pandas' groupby.
        edges_km: bins, the same for every group; see `binned_semivariance`.
        min_places: a group with fewer places with an image is left out.
        estimator: see `binned_semivariance`.
        max_lag_km: see `binned_semivariance`.
        max_pairs: see `binned_semivariance`; counts for each group.
        seed: see `binned_semivariance`.
        progress: show a progress bar for each group.
        group: see `binned_semivariance`.
        backend: a name from `available_backends()`; None picks the fastest.

    Returns:
        The semivariogram of each group by its label, in the order of the labels.

    Raises:
        ValueError: as `binned_semivariance`; `min_places` below 2; labels of another number than N or that
            cannot be sorted; or no group is left.
        ImportError: `progress`, and rich is not installed.

    Warns:
        UserWarning: names the groups that were left out: too few places, or no pair in any bin.
    """
    v = check_matrix("embeddings", embeddings)
    p = check_latlon("latlon", latlon, rows=v.shape[0])
    check_same("device", "embeddings", v, "latlon", p)
    check_number("min_places", min_places, low=2)
    names, members = _rows_by_label(groups, v.shape[0])

    found: dict[Any, EmpiricalVariogram] = {}
    left_out: list[str] = []
    for name, rows in zip(names, members, strict=True):
        where = torch.from_numpy(rows).to(v.device)
        group_v = v[where]
        places = int(has_image(group_v).sum())
        if places < min_places:
            left_out.append(f"{name} ({places} places)")
            continue
        try:
            found[name] = binned_semivariance(
                group_v,
                p[where],
                edges_km=edges_km,
                estimator=estimator,
                max_lag_km=max_lag_km,
                max_pairs=max_pairs,
                seed=seed,
                progress=progress,
                group=group,
                backend=backend,
            )
        except NoPairError:
            left_out.append(f"{name} (no pair in any bin)")
    wanted = f"wanted at least {min_places} places and a pair in a bin"
    if not found:
        raise ValueError(f"groups: {wanted}, got {', '.join(left_out) or 'no label but None or NaN'}")
    if left_out:
        warnings.warn(f"groups left out, {wanted}: {', '.join(left_out)}", stacklevel=2)
    return found


def _rows_by_label(
    groups: Sequence[Any] | npt.NDArray[Any] | torch.Tensor, rows: int
) -> tuple[list[Any], list[npt.NDArray[np.int64]]]:
    """The labels, sorted, and the rows of each."""
    if isinstance(groups, torch.Tensor):
        labels = groups.cpu().numpy()
    else:  # as objects, or NumPy would turn None and NaN among strings into words
        labels = np.asarray(groups, dtype=None if hasattr(groups, "dtype") else object)
    if labels.shape != (rows,):
        raise ValueError(f"groups: wanted shape ({rows},), a label for each embedding, got {labels.shape}")
    labelled = np.array([_is_label(label) for label in labels.tolist()], dtype=bool)
    kept = np.flatnonzero(labelled)
    try:
        names, group_of_row = np.unique(labels[kept], return_inverse=True)
    except TypeError as error:
        raise ValueError(f"groups: wanted labels of one kind, that can be sorted: {error}") from error
    by_group = kept[np.argsort(group_of_row, kind="stable")]
    stops = np.cumsum(np.bincount(group_of_row, minlength=len(names)))
    return names.tolist(), np.split(by_group, stops)[: len(names)]


def _is_label(label: Any) -> bool:
    try:
        return label is not None and bool(label == label)  # NaN ≠ NaN
    except TypeError:  # pandas.NA
        return False
