"""`binned_walk.PairBinning` in Triton: product tiles by torch.mm, binned in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton

from semivario_kernels.backends.binned_products import BlockProducts, TorchProducts
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.backends.triton.binned_kernel import D_UNITS, KM_UNITS, bin_tile
from semivario_kernels.backends.triton.configurations import at_most_registers
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.products import product_into
from semivario_kernels.backends.triton.shipped import CAPABILITIES, ShippedKernel
from semivario_kernels.binned_sums import HISTOGRAM_CELLS, AddUp, BinnedRequest, BinnedSums, as_it_is

Tensor = torch.Tensor

SIDE = 64  # rows and columns of a program's tile
ROBUST_SIDE = 32  # 64 spill beside the sums of the robust estimators
# d² of so many pairs, up to 4 each, stays below 2⁶³ in units of 2⁻³⁴; so does h, up to 2¹⁴·³ km, in 2⁻²² km
MOST_PAIRS = 2**26


def options_of(side: int) -> dict[str, int | bool]:
    """Launch options of `bin_tile`; at 64 × 64, 4 warps would spill 1,400 bytes."""
    return {"num_warps": 8 if side > ROBUST_SIDE else 4, **at_most_registers(255), "enable_fp_fusion": True}


class TritonProducts(TorchProducts):
    """Products in the embeddings' dtype, float32 results."""

    def _product(self, rows: Tensor, columns: Tensor) -> Tensor:
        out = self._tile_buffer.take(len(rows), len(columns), torch.float32, rows.device)
        return product_into(out, rows, columns)


class TritonBinning:
    """Sums in whole units that are flushed to float64."""

    row_blocks: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    column_batch = 8192

    def __init__(self, request: BinnedRequest, dtype: torch.dtype, device: torch.device) -> None:
        self._request, self._device = request, device
        self.products: BlockProducts = TritonProducts(dtype)
        self._edges = request.chord_edges.to(device)
        self._totals = BinnedSums.empty(request, device)
        self._pairs = 0  # in whole units
        self._whole = torch.zeros_like(self._totals.sums, dtype=torch.int64)
        self._units = torch.tensor(
            [1.0, KM_UNITS.value, D_UNITS.value, D_UNITS.value], dtype=torch.float64, device=device
        )
        quarters = self._totals.quarter_sums
        self._whole_quarters = None if quarters is None else torch.zeros_like(quarters, dtype=torch.int64)

    def add(self, rows: Side, columns: Side, dot: Tensor, diagonal: bool) -> None:
        """Bin a tile of pairs."""
        n, m = dot.shape
        if self._pairs + n * m > MOST_PAIRS:
            self._flush()
        self._pairs += n * m
        request, whole = self._request, self._whole
        side = ROBUST_SIDE if request.histogram_cells or request.wants_quarters else SIDE
        with launching_on(dot):
            bin_tile[(triton.cdiv(n, side) * triton.cdiv(m, side),)](
                dot,
                dot.stride(0),
                rows.axes,
                rows.axes.stride(0),
                columns.axes,
                columns.axes.stride(0),
                rows.inverse_norm,
                columns.inverse_norm,
                rows.block,
                columns.block,
                self._edges,
                whole,
                whole.stride(0),
                whole.stride(1),
                self._totals.duplicates,
                self._whole_quarters,
                self._totals.histogram,
                n,
                m,
                request.bins,
                DIAGONAL=diagonal,
                QUARTERS=request.wants_quarters,
                CELLS=request.histogram_cells,
                EDGES=triton.next_power_of_2(request.bins + 1),
                SIDE=side,
                **options_of(side),
            )

    def totals(self, add_up: AddUp = as_it_is) -> BinnedSums:
        """The sums so far, on the CPU."""
        self._flush()
        found = self._totals.tensors().items()
        return BinnedSums(**{name: add_up(value).cpu().clone() for name, value in found})

    def start_from(self, totals: BinnedSums) -> None:
        """Go on from the sums of an earlier run."""
        self._flush()
        for name, value in self._totals.tensors().items():
            value.copy_(getattr(totals, name))

    def _flush(self) -> None:
        self._totals.sums += self._whole / self._units
        self._whole.zero_()
        if self._whole_quarters is not None and self._totals.quarter_sums is not None:
            self._totals.quarter_sums += self._whole_quarters / self._units[2]
            self._whole_quarters.zero_()
        self._pairs = 0


def shipped() -> Iterator[ShippedKernel]:
    """`bin_tile` for 64 and for 3,142 bins, and with what the robust estimators want."""
    types = {"dots": "*fp32"}
    types |= dict.fromkeys(("p", "q", "row_norms", "column_norms", "edges"), "*fp64")
    types |= dict.fromkeys(("row_blocks", "column_blocks"), "*i32")
    types |= dict.fromkeys(("sums", "duplicates", "quarter_sums", "histogram"), "*i64")
    types |= dict.fromkeys(
        ("dot_stride", "p_stride", "q_stride", "row_block_stride", "column_block_stride", "n", "m", "bins"),
        "i32",
    )
    wanted = [("", False, 0), (" quarters", True, 0), (" histogram", False, HISTOGRAM_CELLS)]
    for capability, (words, quarters, cells), edges in product(CAPABILITIES, wanted, (128, 4096)):
        if words and edges > 128:
            continue
        side = ROBUST_SIDE if cells or quarters else SIDE
        absent = {} if quarters else {"quarter_sums": None}
        absent |= {} if cells else {"histogram": None}
        constants = {
            "DIAGONAL": edges == 128,
            "QUARTERS": quarters,
            "CELLS": cells,
            "EDGES": edges,
            "SIDE": side,
            **absent,
        }
        label = f"fp64 positions EDGES={edges}{words}"
        yield ShippedKernel.of("bin_tile", bin_tile, types, constants, options_of(side), capability, label)
