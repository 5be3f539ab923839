"""The arguments of one loss, checked in shape, as the backends take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from semivario_kernels.checks import check_coordinates, check_range, is_checked
from semivario_kernels.policy import NegativePolicy
from semivario_kernels.variogram import VariogramModel


@dataclass(frozen=True)
class Part:
    """Marks a problem as some queries before some of the gallery, and says what its gradient needs to know.

    The sums of a part are merged with those of others; ∂x, ∂y come in the arithmetic's dtype, to be added up.

    Attributes:
        live_rows: (N,) live entries of the rows in the whole gallery; None before they are known.
        live_columns: (M,) live entries of the columns among all queries, where the loss is symmetric.
        column_weights: (M,) upstream gradients of the columns' positives, where the loss is symmetric.
    """

    live_rows: torch.Tensor | None = None
    live_columns: torch.Tensor | None = None
    column_weights: torch.Tensor | None = None


@dataclass(frozen=True)
class InfoNCEProblem:
    """The checked arguments of one loss, as the backends take them.

    Attributes:
        x: (N, D) query features.
        y: (M, D) gallery features.
        logit_scale: scalar s, already exponentiated.
        targets: (N,) int64 index of every query's positive.
        policy: the negative policy.
        variogram: γ, None where the policy does not read it.
        query_latlon: (N, 2) degrees, None where the policy does not read positions.
        gallery_latlon: (M, 2) degrees.
        v: (N, E) visual embeddings of the queries, None where the policy does not read them or d comes from
            the features.
        u: (M, E) of the gallery.
        exclude: (N, K) int64 gallery indices that leave row i, padded by −1, or None.
        label_smoothing: ε.
        symmetric: add the columns' loss.
        normalize: L2-normalise x and y.
        row_weights: (N,) weights of the queries, or None.
        part: says that there are more queries and gallery entries elsewhere; targets and exclude may then
            lie outside of 0 … M−1 and name none of these entries.
        gradient_dtype: what ∂x and ∂y of the whole problem are made in; the features' own when None.
    """

    x: torch.Tensor
    y: torch.Tensor
    logit_scale: torch.Tensor
    targets: torch.Tensor
    policy: NegativePolicy
    variogram: VariogramModel | None
    query_latlon: torch.Tensor | None
    gallery_latlon: torch.Tensor | None
    v: torch.Tensor | None
    u: torch.Tensor | None
    exclude: torch.Tensor | None
    label_smoothing: float
    symmetric: bool
    normalize: bool
    row_weights: torch.Tensor | None = None
    part: Part | None = None
    gradient_dtype: torch.dtype | None = None

    def check_values(self, whole_gallery: int | None = None) -> None:
        """Look at coordinates, indices and weights, on the CPU or with SEMIVARIO_CHECK=1; or ValueError.

        `whole_gallery` is the size of a gallery of which `y` is a part, before which the queries are a part.
        """
        if not is_checked(self.x):
            return
        for name, latlon in (("query_latlon", self.query_latlon), ("gallery_latlon", self.gallery_latlon)):
            if latlon is not None:
                check_coordinates(name, latlon)
        m = self.y.shape[0] if whole_gallery is None else whole_gallery
        check_range("targets", self.targets, 0, m)
        if self.exclude is not None:
            check_range("exclude", self.exclude, -1, m)
            own = (self.exclude == self.targets[:, None]).any(dim=1)
            if bool(own.any()):
                row = int(own.nonzero()[0])
                raise ValueError(
                    f"exclude: wanted negatives only, got row {row}'s own positive, {int(self.targets[row])}"
                )
        if self.row_weights is not None:
            bad = ~(torch.isfinite(self.row_weights) & (self.row_weights >= 0))
            if bool(bad.any()):
                raise ValueError(
                    f"row_weights: wanted finite weights ≥ 0, got {float(self.row_weights[bad][0])}"
                )
            if whole_gallery is None and not bool(self.row_weights.sum() > 0):
                raise ValueError("row_weights: wanted at least one weight above 0, got only zeros")
        if (
            whole_gallery is None
            and self.symmetric
            and int(torch.bincount(self.targets, minlength=m).max()) != 1
        ):
            raise ValueError(
                f"targets: wanted a permutation of 0 … {m - 1} for the symmetric loss, got repeated entries"
            )
