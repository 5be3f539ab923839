"""How well queries find their references: recall, VIGOR's hit rate, University-1652's average precision."""

from __future__ import annotations

from typing import NamedTuple

import torch

_SIMILARITIES_AT_ONCE = 2**23  # 32 MB in float32, and as much for each mask


class Ranked(NamedTuple):
    """What each of N queries found among the references, on the CPU.

    Attributes:
        rank: (N,) int64 of the first right reference, from 1.
        hit: (N,) bool, no wrong one before it, semi-positives set aside; None without semi-positives.
        precision: "ap" and "ap_step", (N,) float64.
        references: number M of them.
    """

    rank: torch.Tensor
    hit: torch.Tensor | None
    precision: dict[str, torch.Tensor]
    references: int

    def successes(self) -> dict[str, torch.Tensor]:
        """(N,) bool by metric: "recall@1", "recall@5", "recall@10", "recall@1%", "hit_rate"."""
        found = {f"recall@{k}": self.rank <= k for k in (1, 5, 10)}
        found["recall@1%"] = self.rank <= max(1, self.references // 100)
        return found if self.hit is None else {**found, "hit_rate": self.hit}

    def means(self) -> dict[str, float]:
        """Over the queries, of `successes` and of `precision`."""
        values = {**self.successes(), **self.precision}
        return {name: value.double().mean().item() for name, value in values.items()}


def retrieval_metrics(
    queries: torch.Tensor,
    references: torch.Tensor,
    query_labels: torch.Tensor,
    reference_labels: torch.Tensor,
    *,
    semi_positives: torch.Tensor | None = None,
) -> dict[str, float]:
    """The means of what `rank_references`, which takes the same arguments, finds.

    Args:
        queries: (N, D) features.
        references: (M, D) features.
        query_labels: (N,) int64.
        reference_labels: (M,) int64.
        semi_positives: (N, K) int64 rows of the references, −1 padded.

    Returns:
        Fractions by name. "recall@1", "recall@5", "recall@10" and "recall@1%" (of M, at least one) of queries
        with a right reference among the first k; "hit_rate" (VIGOR, Zhu et al., 2021: no wrong reference
        comes first, semi-positives set aside), where semi-positives are given; "ap", University-1652's
        average precision (trapezoids between the recall levels), and "ap_step", scikit-learn's (their right
        ends).

    Raises:
        ValueError: as in `rank_references`.
    """
    return rank_references(
        queries, references, query_labels, reference_labels, semi_positives=semi_positives
    ).means()


def rank_references(
    queries: torch.Tensor,
    references: torch.Tensor,
    query_labels: torch.Tensor,
    reference_labels: torch.Tensor,
    *,
    semi_positives: torch.Tensor | None = None,
) -> Ranked:
    """Rank all references for every query, some queries at a time.

    A reference is right for a query where their labels agree. A wrong one that is exactly as similar as the
    right one ranks before it: features that are all equal find nothing. NaN is less similar
    than any number.

    Args:
        queries: (N, D) features; similarity is the inner product, so that unit features are ranked by cosine.
        references: (M, D) features.
        query_labels: (N,) int64.
        reference_labels: (M,) int64.
        semi_positives: (N, K) int64 rows of the references that are neither right nor wrong, −1 padded.

    Raises:
        ValueError: shapes that do not agree, or a query without a right reference.
    """
    n, m = len(queries), len(references)
    if queries.ndim != 2 or references.ndim != 2 or queries.shape[1] != references.shape[1] or not n:
        raise ValueError(
            f"queries, references: wanted (N, D) and (M, D), got {tuple(queries.shape)} and "
            f"{tuple(references.shape)}"
        )
    for name, labels, rows in (("query_labels", query_labels, n), ("reference_labels", reference_labels, m)):
        if labels.shape != (rows,):
            raise ValueError(f"{name}: wanted shape ({rows},), got {tuple(labels.shape)}")
    if semi_positives is not None and (semi_positives.ndim != 2 or len(semi_positives) != n):
        raise ValueError(f"semi_positives: wanted ({n}, K), got {tuple(semi_positives.shape)}")
    without = ~torch.isin(query_labels, reference_labels)
    if without.any():
        row = int(without.nonzero()[0])
        raise ValueError(f"query_labels: no reference has the label {int(query_labels[row])} of query {row}")
    ranks = torch.empty(n, dtype=torch.int64)
    hits = torch.zeros(n, dtype=torch.bool)
    precision = torch.empty(2, n, dtype=torch.float64)
    at_once = max(1, _SIMILARITIES_AT_ONCE // m)
    for start in range(0, n, at_once):
        some = slice(start, start + at_once)
        similarity = queries[some] @ references.T
        right = query_labels[some, None] == reference_labels
        # nothing is ≥ NaN: a right reference that is NaN would come first
        similarity = similarity.masked_fill(similarity.isnan(), torch.finfo(similarity.dtype).min)
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        before = (similarity >= best) & ~right
        ranks[some] = 1 + before.sum(dim=1).cpu()
        if semi_positives is not None:
            hits[some] = ~_without(before, semi_positives[some]).any(dim=1).cpu()
        precision[:, some] = _average_precision(similarity, right).cpu()
    return Ranked(
        ranks,
        None if semi_positives is None else hits,
        dict(zip(("ap", "ap_step"), precision, strict=True)),
        m,
    )


def _without(before: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`before` (b, M) with False in each row's columns (b, K), −1 padded."""
    widened = torch.cat((before, before.new_zeros(len(before), 1)), dim=1)  # −1 falls into the last
    columns = torch.where(columns < 0, before.shape[1], columns).to(before.device)
    return widened.scatter(1, columns, False)[:, :-1]


def _average_precision(similarity: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(2, b) float64: by trapezoids, and by steps.

    The k-th right reference of a query has k − 1 right ones and w wrong ones before it: precision there is
    k / (k + w), and just before it (k − 1) / (k − 1 + w), or 1 where nothing comes before.
    """
    query, column = right.nonzero(as_tuple=True)  # by query
    value = similarity[query, column]
    by_value = torch.argsort(value, descending=True, stable=True)
    order = by_value[torch.argsort(query[by_value], stable=True)]
    query, value = query[order], value[order]
    counts = right.sum(dim=1)
    k = 1 + torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    if len(query) == len(similarity):  # one right reference each: no need to sort
        wrong = ((similarity >= value[:, None]) & ~right).sum(dim=1)
    else:
        rising = similarity.masked_fill(right, -torch.inf).sort(dim=1).values
        wrong = torch.empty_like(query)
        for row in range(len(similarity)):
            own = query == row
            wrong[own] = len(rising[row]) - torch.searchsorted(rising[row], value[own])
    here = k / (k + wrong).double()
    just_before = torch.where(k + wrong > 1, (k - 1) / (k - 1 + wrong).clamp(min=1).double(), 1.0)
    share = 1 / counts[query].double()
    result = torch.zeros(2, len(similarity), dtype=torch.float64, device=similarity.device)
    result[0].index_add_(0, query, share * (here + just_before) / 2)
    result[1].index_add_(0, query, share * here)
    return result
