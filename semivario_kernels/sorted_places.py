"""From embeddings and positions to places along a space-filling curve, parted into spatial blocks."""

from __future__ import annotations

import torch

from semivario_kernels.backends.binned_walk import Places
from semivario_kernels.binned_sums import affordable_blocks
from semivario_kernels.dissimilarity import arithmetic_dtype
from semivario_kernels.geometry import unit_vectors
from semivario_kernels.ranks import Ranks
from semivario_kernels.space_filling import curve_codes

Tensor = torch.Tensor

NORM_ROWS = 1024  # cast at once where the embeddings are shorter than float32


def sorted_places(
    sides: list[tuple[str, Tensor, Tensor]], bins: int, ranks: Ranks
) -> tuple[list[Places], int]:
    """Sort one or two sets of places, (name, embeddings (n, E), latlon (n, 2) in degrees) each.

    The ranks have the same places, and each reads its share of the embeddings for their norms.

    Returns:
        Their places, without those whose embedding is all zero, and the number of spatial blocks they share.

    Raises:
        ValueError: an embedding that is not finite; fewer than two places of one set, or none of one of two.
    """
    norms = [_inverse_norms(name, embeddings, ranks) for name, embeddings, _ in sides]
    for (name, _, _), norm in zip(sides, norms, strict=True):
        least, rows = 2 if len(sides) == 1 else 1, int((norm != 0).sum())
        if rows < least:
            raise ValueError(f"{name}: wanted at least {least} rows that are not all zero, got {rows}")
    units = [unit_vectors(latlon) for _, _, latlon in sides]
    codes = [curve_codes(unit) for unit in units]
    blocks = affordable_blocks(min(len(code) for code in codes), bins)
    ordered = torch.cat(codes).sort().values
    # the codes at which the second, third, … block begins
    bounds = ordered[torch.arange(1, blocks, device=ordered.device) * len(ordered) // blocks]
    places = []
    for (_, embeddings, _), norm, unit, code in zip(sides, norms, units, codes, strict=True):
        index = torch.argsort(code, stable=True)
        index = index[norm[index] != 0]
        block = torch.searchsorted(bounds, code[index], right=True).to(torch.int32)
        places.append(Places(embeddings, index, unit.T[:, index].contiguous(), norm[index], block))
    return places, blocks


def _inverse_norms(name: str, embeddings: Tensor, ranks: Ranks) -> Tensor:
    """1/|v| of every row in float64, of norms in the arithmetic's dtype; 0 for a row that is all zero."""
    dtype = arithmetic_dtype(embeddings)

    def norms_of(where: slice) -> Tensor:
        blocks = torch.split(embeddings[where], NORM_ROWS)
        return torch.cat([rows.to(dtype).norm(dim=1) for rows in blocks]).double()

    norms = ranks.joined(norms_of, len(embeddings))
    if not bool(torch.isfinite(norms).all()):
        row = int((~torch.isfinite(norms)).nonzero()[0])
        raise ValueError(f"{name}: wanted finite values, got NaN or infinity in row {row}")
    return torch.where(norms > 0, 1 / norms, 0.0)
