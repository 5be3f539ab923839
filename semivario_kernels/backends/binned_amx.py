"""The products of a binned semivariance on AMX tiles."""

from __future__ import annotations

import torch

from semivario_kernels.backends.amx_product import AmxProduct
from semivario_kernels.backends.binned_products import Buffer

Tensor = torch.Tensor


class AmxProducts:
    """`BlockProducts` by `AmxProduct`, in float32: embeddings are read where they lie, in their own dtype.

    Args:
        columns: embeddings of all columns to come.
    """

    in_place = True

    def __init__(self, columns: Tensor) -> None:
        self._columns = columns
        self.release()

    def release(self) -> None:
        """Give back the memory."""
        self._product, self._tile_buffer = AmxProduct(self._columns), Buffer()

    def take_rows(self, embeddings: Tensor, index: Tensor) -> None:
        """Load rows `index` of the embeddings."""
        self._product.take_rows(embeddings, index)
        self._index = index

    def with_own(self, first: int, last: int, met_rows: Tensor) -> Tensor:
        """Multiply rows first … last − 1 of the block with its rows from `first` on."""
        return self._multiply(slice(first, last), self._columns, self._index[first:], met_rows)

    def with_columns(self, embeddings: Tensor, index: Tensor, met_rows: Tensor) -> Tensor:
        """Multiply the block with rows `index` of other embeddings."""
        return self._multiply(slice(0, len(self._index)), embeddings, index, met_rows)

    def _multiply(self, rows: slice, columns: Tensor, index: Tensor, met_rows: Tensor) -> Tensor:
        out = self._tile_buffer.take(rows.stop - rows.start, len(index), torch.float32, columns.device)
        return self._product.multiply(rows, columns, out, index, met_rows)
