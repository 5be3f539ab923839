"""The CPU kernels of `csrc/`, with the interface of `tile_driver.Epilogue`: tensors in, addresses on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from semivario_kernels.backends.tile_driver import STATISTICS, Prepared, Side

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor
NOTHING = (0, 0)  # address and stride of what is left out
POLICY_VALUES = ("hard", "false", "tolerance", "mass", "range_km", "strength", "scale_km", "weight")


def _load() -> tuple[Any, str | None]:
    # torch, imported above, brings the OpenMP library whose symbols the extension leaves open
    try:
        return importlib.import_module("semivario_kernels._native"), None
    except ModuleNotFoundError as error:
        return None, f"{error}: the package was installed without a compiler"
    except ImportError as error:
        return None, str(error)


_native, _reason = _load()


def unavailable_reason() -> str | None:
    """Say why the compiled kernels cannot be used; None where they can."""
    return _reason


class NativeEpilogue:
    """`tile_driver.Epilogue` in C++: one pass over the tile, on `torch.get_num_threads()` threads.

    Serves float32 arithmetic; results do not depend on the number of threads.

    Raises:
        ValueError: arithmetic in float64, or a nested variogram of more than 16 structures.
    """

    def __init__(self, prepared: Prepared) -> None:
        problem = prepared.problem
        if prepared.dtype != torch.float32:
            raise ValueError(f"x: the compiled kernels want float32 arithmetic, got {prepared.dtype}")
        self._n, self._m = prepared.n, prepared.m
        # these own the memory that the extension borrows
        self._kept = (
            prepared.p,
            prepared.q,
            prepared.inverse_y,
            prepared.inverse_v,
            prepared.inverse_u,
            prepared.targets,
        )
        p, q, inverse_y, inverse_v, inverse_u, targets = (
            _address(tensor, torch.int64 if tensor is prepared.targets else torch.float32)
            for tensor in self._kept
        )
        self._epilogue = _native.Epilogue(
            policy_kind=problem.policy.kind,
            policy={name: getattr(problem.policy, name) for name in POLICY_VALUES},
            **_variogram(problem),
            scale=float(prepared.scale),
            features=problem.policy.reads_dissimilarity and prepared.inverse_u is None,
            threads=torch.get_num_threads(),
            p=p,
            q=q,
            gallery=prepared.m,
            inverse_y=inverse_y,
            image_v=inverse_v,
            inverse_u=inverse_u,
            targets=targets,
        )

    def forward(
        self,
        rows: slice,
        columns: slice,
        dot: Tensor,
        vu: Tensor | None,
        extra: Tensor | None,
        statistics: Tensor | None,
    ) -> None:
        """Turn `dot` into logits and add to the rows' sums."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._epilogue.forward(
            *_place(rows, columns),
            *_matrix("dot", dot, shape),
            *_matrix("vu", vu, shape),
            *_matrix("extra", extra, shape),
            *_matrix("statistics", statistics, (STATISTICS, self._n), torch.float64),
        )

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._epilogue.column_statistics(
            *_place(rows, columns),
            *_matrix("logits", logits, shape),
            *_matrix("soft", soft, shape),
            *_matrix("statistics", statistics, (STATISTICS, self._m), torch.float64),
        )

    def gradient(
        self,
        rows: slice,
        columns: slice,
        logits: Tensor,
        extra: Tensor | None,
        row_side: Side,
        column_side: Side | None,
        out: Tensor,
    ) -> None:
        """Turn logits into A in place."""
        assert out is logits
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._epilogue.gradient(
            *_place(rows, columns),
            *_matrix("logits", logits, shape),
            *_matrix("extra", extra, shape),
            _side(row_side, self._n),
            (0, 0, 0, 0) if column_side is None else _side(column_side, self._m),
        )


def haversine_km(p: Tensor, q: Tensor, out: Tensor) -> None:
    """Write the distances in km of float32 unit vectors (n, 3) and (m, 3) into `out` (n, m), float32."""
    p, q = p.contiguous(), q.contiguous()
    address, stride = _matrix("out", out, (len(p), len(q)))
    threads = torch.get_num_threads()
    _native.haversine(
        _address(p, torch.float32), len(p), _address(q, torch.float32), len(q), address, stride, threads
    )


def _variogram(problem: InfoNCEProblem) -> dict[str, Any]:
    model = problem.variogram
    if model is None:
        return {"structures": [], "nugget": 0.0, "psill": 0.0, "metric": "arc"}
    total, count = model.total_psill, len(model.structures)
    return {
        "structures": [
            (kind, psill / total if total > 0 else 1 / count, len_scale_km, alpha)
            for kind, psill, len_scale_km, alpha in model.structures
        ],
        "nugget": model.nugget,
        "psill": total,
        "metric": model.metric,
    }


def _address(tensor: Tensor | None, dtype: torch.dtype) -> int:
    if tensor is None:
        return 0
    assert tensor.dtype == dtype
    assert tensor.device.type == "cpu"
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def _matrix(
    name: str, matrix: Tensor | None, shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[int, int]:
    """Address and row stride of a matrix with contiguous columns."""
    if matrix is None:
        return NOTHING
    contiguous = matrix.stride(1) == 1 or shape[1] == 1
    if matrix.shape != shape or matrix.dtype != dtype or matrix.device.type != "cpu" or not contiguous:
        raise ValueError(
            f"{name}: wanted {dtype} of shape {shape} on the CPU with contiguous columns, "
            f"got {matrix.dtype} of shape {tuple(matrix.shape)}, strides {matrix.stride()}, "
            f"on {matrix.device}"
        )
    return matrix.data_ptr(), matrix.stride(0)


def _place(rows: slice, columns: slice) -> tuple[int, int, int, int]:
    return rows.start, rows.stop - rows.start, columns.start, columns.stop - columns.start


def _side(side: Side, length: int) -> tuple[int, int, int, int]:
    for tensor in (side.log_sum_exp, side.weight, side.hard, side.smooth):
        assert tensor.shape == (length,)
    return (
        _address(side.log_sum_exp, torch.float32),
        _address(side.weight, torch.float32),
        _address(side.hard, torch.float32),
        _address(side.smooth, torch.float32),
    )
