"""Binning of product tiles in CUDA C++: one pass over a tile of float32 products, on the current stream."""

from __future__ import annotations

import torch

from semivario_kernels.backends import cuda_epilogue
from semivario_kernels.backends.bin_table import make_bin_table
from semivario_kernels.backends.binned_products import BlockProducts, TorchProducts
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.backends.native_epilogue import address, matrix
from semivario_kernels.binned_sums import AddUp, BinnedRequest, BinnedSums, as_it_is

Tensor = torch.Tensor


class CudaBinning:
    """`binned_walk.PairBinning` in CUDA C++: float32 products, sums of whole units, equal in every run."""

    row_blocks: tuple[int, ...] = (512, 1024, 2048, 4096)
    column_batch = 16384

    def __init__(self, request: BinnedRequest, device: torch.device) -> None:
        extension = cuda_epilogue.native_cuda()
        self._device = device
        self.products: BlockProducts = TorchProducts(torch.float32)
        self._units = {
            "sums": torch.tensor(extension.Binning.units, dtype=torch.float64, device="cpu"),
            "quarter_sums": torch.tensor(extension.Binning.quarter_units, dtype=torch.float64, device="cpu"),
        }
        self._sums = {
            name: torch.zeros(value.shape, dtype=torch.int64, device=device)
            for name, value in BinnedSums.empty(request).tensors().items()
        }
        table = make_bin_table(request.chord_edges.numpy())
        self._table = torch.from_numpy(table.edges).to(device), torch.from_numpy(table.cells).to(device)
        places = {name: address(value, torch.int64, device) for name, value in self._sums.items()}
        self._binning = extension.Binning(
            **cuda_epilogue.queue_of(device),
            edges=address(self._table[0], torch.float64, device),
            cells=address(self._table[1], torch.int32, device),
            cell_count=len(table.cells),
            first_cell=table.first_cell,
            shift=table.shift,
            offset=table.offset,
            bins=request.bins,
            blocks=request.blocks,
            sums=places["sums"],
            quarter_sums=places.get("quarter_sums", 0),
            histogram=places.get("histogram", 0),
            histogram_cells=request.histogram_cells,
            duplicates=places["duplicates"],
        )

    def totals(self, add_up: AddUp = as_it_is) -> BinnedSums:
        """The sums so far, on the CPU."""
        found = {name: add_up(value).cpu() for name, value in self._sums.items()}
        return BinnedSums(
            **{
                name: value.double() / self._units[name] if name in self._units else value.clone()
                for name, value in found.items()
            }
        )

    def start_from(self, totals: BinnedSums) -> None:
        """Go on from the sums of an earlier run."""
        for name, value in totals.tensors().items():
            whole = (value * self._units[name]).round() if name in self._units else value
            self._sums[name].copy_(whole)

    def add(self, rows: Side, columns: Side, dot: Tensor, diagonal: bool) -> None:
        """Bin a tile of pairs."""
        shape = rows.axes.shape[1], columns.axes.shape[1]
        norms = rows.inverse_norm.float(), columns.inverse_norm.float()  # alive until the launch
        self._binning.add(
            self._addresses(rows, norms[0]),
            self._addresses(columns, norms[1]),
            matrix("dot", dot, shape, torch.float32, self._device),
            diagonal,
        )

    def _addresses(self, side: Side, inverse_norm: Tensor) -> tuple[int, int, int, int, int]:
        axes, stride = matrix("axes", side.axes, (3, side.axes.shape[1]), torch.float64, self._device)
        return (
            side.axes.shape[1],
            axes,
            stride,
            address(inverse_norm, torch.float32, self._device),
            address(side.block, torch.int32, self._device),
        )
