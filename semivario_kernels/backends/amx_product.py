"""Products of rows on the AMX tiles of recent Intel processors; `csrc/cpu/amx_product.cpp` says how.

A float32 enters as the sum of two bfloat16, right to 2⁻¹⁷ of it. The error of ⟨v̂, û⟩ has no bias and falls
with the length: against float64, at E = 768, 1.3e-7 rms for unrelated unit vectors and 3.5e-7 for equal ones,
at most 1.3e-6 (torch.mm in float32: 0.1e-7, 2.0e-7 and 0.7e-6). bfloat16 and float16 are taken as they are,
and the products of two bfloat16 are exact.

What is constant for the gradient goes this way, the dissimilarity, and the similarity where torch is allowed
less than float32 or the features are shorter. `SEMIVARIO_ISA=avx512` does without AMX, and so does
`torch.set_float32_matmul_precision("highest")` where it is called, which asks for float32 by name.
"""

from __future__ import annotations

import torch

from semivario_kernels.backends.native_epilogue import matrix, native_extension

Tensor = torch.Tensor

CPU = torch.device("cpu")
ELEMENTS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LEAST_LENGTH = 128  # below, products cost little, and fewer roundings of the split average out


def unavailable_reason() -> str | None:
    """Say why there are no products on AMX tiles; None where there are."""
    extension = native_extension()
    isa: str = extension.instruction_set()
    if isa == "amx":
        return "torch was asked for float32 products" if _matmul_precision() == "ieee" else None
    reason: str = extension.amx_unavailable() or f"SEMIVARIO_ISA={isa}"
    return reason


def allows_less_than_float32() -> bool:
    """Whether torch may multiply float32 matrices in less, as `set_float32_matmul_precision("high")` says."""
    return _matmul_precision() in ("tf32", "bf16")


def _matmul_precision() -> str:
    # torch.get_float32_matmul_precision() raises where only some backends' precision was set
    precision: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision


def takes(*matrices: Tensor) -> bool:
    """Whether rows of matrices (·, E) can be multiplied on AMX tiles, and it is worth while."""
    return (
        all(
            matrix.device == CPU
            and matrix.dtype in ELEMENTS
            and matrix.stride(1) == 1
            and matrix.shape[1] >= LEAST_LENGTH
            for matrix in matrices
        )
        and unavailable_reason() is None
    )


class AmxProduct:
    """Products of a row block with columns, rows of two matrices that `takes` says yes to, in float32.

    The product of two rows is the same bits wherever they lie in their blocks, on any number of threads, and
    with the two exchanged where their dtypes are equal.

    Args:
        columns: the matrix whose rows are the columns, or any other of its dtype and length.
    """

    def __init__(self, columns: Tensor) -> None:
        self._dtype, self._length = columns.dtype, columns.shape[1]
        self._product = native_extension().AmxProduct(
            length=self._length, columns=ELEMENTS[columns.dtype], threads=torch.get_num_threads()
        )

    def take_rows(self, rows: Tensor, index: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Load rows (n, E), or those that `index` (n,) names, times their `scale` (n,), float32."""
        where = self._addresses(rows, rows.dtype, index)
        assert scale is None or scale.shape == (where[3],)
        self._product.take_rows(where, ELEMENTS[rows.dtype], _address(scale, torch.float32))

    def multiply(
        self,
        rows: slice,
        columns: Tensor,
        out: Tensor,
        index: Tensor | None = None,
        met_rows: Tensor | None = None,
    ) -> Tensor:
        """Write the products of some loaded rows and of columns (m, E), or those named, into `out` (n, m).

        Of every 32 columns only those with some rows where `met_rows` (⌈m/32⌉, 2) int32 gives the first of
        `rows`, a multiple of 32, and the one after the last; what stands elsewhere in `out` is void.
        """
        where = self._addresses(columns, self._dtype, index)
        count = rows.stop - rows.start
        self._product.multiply(
            rows.start,
            count,
            where,
            _address(met_rows, torch.int32),
            *matrix("out", out, (count, where[3]), torch.float32, CPU),
        )
        return out

    def _addresses(self, rows: Tensor, dtype: torch.dtype, index: Tensor | None) -> tuple[int, int, int, int]:
        data, stride = matrix("rows", rows, (len(rows), self._length), dtype, CPU)
        return data, stride, _address(index, torch.int64), len(rows if index is None else index)


def _address(vector: Tensor | None, dtype: torch.dtype) -> int:
    if vector is None:
        return 0
    assert vector.dtype == dtype
    assert vector.is_contiguous()
    return vector.data_ptr()
