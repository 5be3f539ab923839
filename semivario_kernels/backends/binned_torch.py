"""Binning of product tiles in torch, float64 where it matters, on any device."""

from __future__ import annotations

import torch

from semivario_kernels.backends.binned_products import BlockProducts, TorchProducts
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.binned_sums import BIN_SUMS, AddUp, BinnedRequest, BinnedSums, as_it_is
from semivario_kernels.geometry import EARTH_RADIUS_KM

Tensor = torch.Tensor

DUPLICATE_SQUARED_CHORD = 1e-28  # 64 nm: above the rounding of float64 unit vectors, below any real distance


class TorchBinning:
    """`binned_walk.PairBinning` in torch: products in `dtype`, all sums in float64."""

    row_blocks: tuple[int, ...] = (128, 256, 512, 1024)
    column_batch = 1024

    def __init__(self, request: BinnedRequest, dtype: torch.dtype, device: torch.device) -> None:
        self._totals = BinnedSums.empty(request, device)
        self._request = request
        self.products: BlockProducts = TorchProducts(dtype)
        self._edges = request.chord_edges.to(device)

    def add(self, rows: Side, columns: Side, dot: Tensor, diagonal: bool) -> None:
        """Bin a tile of pairs."""
        request, totals = self._request, self._totals
        near = dot.new_zeros(dot.shape, dtype=torch.float64)
        for p, q in zip(rows.axes, columns.axes, strict=True):
            near += (p[:, None] - q[None, :]).square()
        counted = torch.ones_like(near, dtype=torch.bool)
        if diagonal:
            counted = counted.triu(diagonal=1)
        totals.duplicates += (counted & (near < DUPLICATE_SQUARED_CHORD)).sum()
        bin_of = torch.bucketize(near, self._edges, right=True)
        counted &= (bin_of > 0) & (bin_of <= request.bins)
        blocks = rows.block[:, None] * request.blocks + columns.block[None, :]
        place = (blocks * (request.bins + 2) + bin_of)[counted]
        near, bin_of = near[counted], bin_of[counted]
        norms = (rows.inverse_norm[:, None] * columns.inverse_norm[None, :])[counted]
        d = (1 - dot[counted] * norms).clamp(0, 2).double()
        h_km = 2 * EARTH_RADIUS_KM * torch.atan2(near.sqrt(), (4 - near).clamp(min=0).sqrt())
        sums = totals.sums.view(-1, BIN_SUMS)
        for k, value in enumerate((torch.ones_like(d), h_km, d, d * d)):
            sums[:, k] += torch.bincount(place, weights=value, minlength=len(sums))
        if totals.quarter_sums is not None:
            totals.quarter_sums += torch.bincount(bin_of, weights=d**0.25, minlength=request.bins + 2)
        if totals.histogram is not None:
            cells = request.histogram_cells
            cell = (d * (cells / 2)).long().clamp(max=cells - 1)
            flat = torch.bincount(bin_of * cells + cell, minlength=totals.histogram.numel())
            totals.histogram += flat.view_as(totals.histogram)

    def totals(self, add_up: AddUp = as_it_is) -> BinnedSums:
        """The sums so far, on the CPU."""
        found = self._totals.tensors().items()
        return BinnedSums(**{name: add_up(value).cpu().clone() for name, value in found})

    def start_from(self, totals: BinnedSums) -> None:
        """Go on from the sums of an earlier run."""
        self._totals = BinnedSums(
            **{name: value.to(self._edges.device, copy=True) for name, value in totals.tensors().items()}
        )
