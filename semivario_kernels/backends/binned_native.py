"""Binning of product tiles in C++: one pass over a tile of float32 products, on all of torch's threads."""

from __future__ import annotations

import torch

from semivario_kernels.backends.bin_table import make_bin_table
from semivario_kernels.backends.binned_products import BlockProducts
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.backends.native_epilogue import native_extension
from semivario_kernels.binned_sums import AddUp, BinnedRequest, BinnedSums, as_it_is

Tensor = torch.Tensor


class NativeBinning:
    """`binned_walk.PairBinning` in C++: float32 products, sums of whole units, a copy for each thread."""

    row_blocks: tuple[int, ...] = (256, 1024, 4096)
    column_batch = 768

    def __init__(self, request: BinnedRequest, products: BlockProducts) -> None:
        self.products = products
        extension = native_extension()
        threads = torch.get_num_threads()
        self._units = torch.tensor(extension.Binning.units, dtype=torch.float64, device="cpu")
        start = BinnedSums.empty(request, torch.device("meta"))  # for names and shapes
        self._copies = {
            name: torch.zeros(
                threads,
                *value.shape,
                dtype=torch.int64 if name == "sums" else value.dtype,
                device="cpu",
            )
            for name, value in start.tensors().items()
        }
        self._table = table = make_bin_table(request.chord_edges.numpy())
        addresses = {name: tensor.data_ptr() for name, tensor in self._copies.items()}
        self._binning = extension.Binning(
            edges=table.edges.ctypes.data,
            cells=table.cells.ctypes.data,
            cell_count=len(table.cells),
            first_cell=table.first_cell,
            shift=table.shift,
            offset=table.offset,
            bins=request.bins,
            blocks=request.blocks,
            threads=threads,
            sums=addresses["sums"],
            quarter_sums=addresses.get("quarter_sums", 0),
            histogram=addresses.get("histogram", 0),
            histogram_cells=request.histogram_cells,
            duplicates=addresses["duplicates"],
        )

    def totals(self, add_up: AddUp = as_it_is) -> BinnedSums:
        """The sums of all threads."""
        added = {name: add_up(copies.sum(dim=0)) for name, copies in self._copies.items()}
        added["sums"] = added["sums"].double().div_(self._units)
        return BinnedSums(**added)

    def start_from(self, totals: BinnedSums) -> None:
        """Go on from the sums of an earlier run."""
        for name, value in totals.tensors().items():
            self._copies[name].zero_()
            self._copies[name][0] = (value * self._units).round() if name == "sums" else value

    def add(self, rows: Side, columns: Side, dot: Tensor, diagonal: bool) -> None:
        """Bin a tile of pairs."""
        row_norm, column_norm = rows.inverse_norm.float(), columns.inverse_norm.float()
        self._binning.add(
            _addresses(rows, row_norm),
            _addresses(columns, column_norm),
            0 if columns.met_rows is None else columns.met_rows.data_ptr(),
            dot.data_ptr(),
            dot.stride(0),
            diagonal,
        )


def _addresses(side: Side, inverse_norm: Tensor) -> tuple[int, int, int, int, int]:
    assert side.axes.dtype == torch.float64
    assert side.axes.stride(1) == 1
    assert side.block.dtype == torch.int32
    return (
        side.axes.shape[1],
        side.axes.data_ptr(),
        side.axes.stride(0),
        inverse_norm.data_ptr(),
        side.block.data_ptr(),
    )
