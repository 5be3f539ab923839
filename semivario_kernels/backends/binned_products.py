"""The products a binned semivariance is made of: a row block of embeddings with columns, tile by tile."""

from __future__ import annotations

from typing import Protocol

import torch

Tensor = torch.Tensor


class BlockProducts(Protocol):
    """Dot products of a row block with columns, taken row by row; a tile is void when the next is made.

    Attributes:
        in_place: whether columns are read where they lie, not copied first, and multiplied only with the rows
            that `met_rows` names (`binned_walk.Side`); the products with others are void.
    """

    in_place: bool

    def take_rows(self, embeddings: Tensor, index: Tensor) -> None:
        """Load rows `index` of the embeddings."""

    def with_own(self, first: int, last: int, met_rows: Tensor) -> Tensor:
        """Multiply rows first … last − 1 of the block with its rows from `first` on."""

    def with_columns(self, embeddings: Tensor, index: Tensor, met_rows: Tensor) -> Tensor:
        """Multiply the block with rows `index` of other embeddings."""

    def release(self) -> None:
        """Give back the memory."""


class Buffer:
    """Memory that is used again, and grows where it must."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def take(self, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised (rows, columns) matrix; the one taken before is void."""
        size = rows * columns
        if self._memory is None or self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=dtype, device=device)
        return self._memory[:size].view(rows, columns)


class TorchProducts:
    """`BlockProducts` by torch.mm.

    Args:
        dtype: to which the gathered rows are cast.
    """

    in_place = False

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.release()

    def release(self) -> None:
        """Give back the memory."""
        self._row_buffer, self._column_buffer, self._tile_buffer = Buffer(), Buffer(), Buffer()
        self._rows = torch.empty(0)

    def take_rows(self, embeddings: Tensor, index: Tensor) -> None:
        """Load rows `index` of the embeddings."""
        self._rows = self._gathered(embeddings, index, self._row_buffer)

    def with_own(self, first: int, last: int, met_rows: Tensor) -> Tensor:
        """Multiply rows first … last − 1 of the block with its rows from `first` on."""
        return self._product(self._rows[first:last], self._rows[first:])

    def with_columns(self, embeddings: Tensor, index: Tensor, met_rows: Tensor) -> Tensor:
        """Multiply the block with rows `index` of other embeddings."""
        return self._product(self._rows, self._gathered(embeddings, index, self._column_buffer))

    def _gathered(self, embeddings: Tensor, index: Tensor, buffer: Buffer) -> Tensor:
        rows = buffer.take(len(index), embeddings.shape[1], self._dtype, embeddings.device)
        if embeddings.dtype == self._dtype:
            return torch.index_select(embeddings, 0, index, out=rows)
        return rows.copy_(embeddings[index])

    def _product(self, rows: Tensor, columns: Tensor) -> Tensor:
        out = self._tile_buffer.take(len(rows), len(columns), self._dtype, rows.device)
        return torch.mm(rows, columns.T, out=out)
