"""The CPU kernels of `csrc/cpu/`, with the interface of `tile_driver.Epilogue`: tensors in, addresses on."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from semivario_kernels.backends.tile_driver import STATISTICS, Prepared, Side
from semivario_kernels.policy import PARAMETERS

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor
CPU = torch.device("cpu")
NOTHING = (0, 0)  # address and stride of what is left out


def _load() -> tuple[Any, str | None]:
    # torch, imported above, brings the OpenMP library whose symbols the extension leaves open
    try:
        return importlib.import_module("semivario_kernels._native"), None
    except ModuleNotFoundError:
        return None, _why_not_built()
    except ImportError as error:
        return None, str(error)


def _why_not_built() -> str:
    root = Path(__file__).parents[2]
    if (root / "setup.py").exists():
        return f"not built in {root}, whose sources are imported: leave that folder, or pip install -e ."
    return "not built: C++ compiler missing or failed; SEMIVARIO_NATIVE=1 pip install . says why"


_native, _reason = _load()


def unavailable_reason() -> str | None:
    """Say why the compiled kernels cannot be used; None where they can."""
    return _reason


def native_extension() -> Any:
    """The compiled extension; `unavailable_reason` says whether there is one."""
    return _native


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
        self._n, self._m, self._device = prepared.n, prepared.m, prepared.targets.device
        # these own the memory that the extension borrows
        self._kept = {
            "p": prepared.p,
            "q": prepared.q,
            "inverse_y": prepared.inverse_y,
            "image_v": prepared.inverse_v,
            "inverse_u": prepared.inverse_u,
            "targets": prepared.targets,
        }
        self._epilogue = self._make(
            prepared,
            policy_kind=problem.policy.kind,
            policy={name: getattr(problem.policy, name) for name in PARAMETERS},
            **_variogram(problem),
            features=problem.policy.reads_dissimilarity and prepared.inverse_u is None,
        )

    def _make(self, prepared: Prepared, **arguments: Any) -> Any:
        """Make the extension's object from the loss's `arguments` and the device's own."""
        return _native.Epilogue(
            **arguments,
            **self._kept_addresses(),
            scale=float(prepared.scale),
            gallery=self._m,
            threads=torch.get_num_threads(),
        )

    def _kept_addresses(self) -> dict[str, int]:
        return {
            name: address(tensor, torch.int64 if name == "targets" else torch.float32, self._device)
            for name, tensor in self._kept.items()
        }

    def _matrix(
        self,
        name: str,
        tensor: Tensor | None,
        shape: tuple[int, int],
        dtype: torch.dtype = torch.float32,
    ) -> tuple[int, int]:
        return matrix(name, tensor, shape, dtype, self._device)

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
            *place(rows, columns),
            *self._matrix("dot", dot, shape),
            *self._matrix("vu", vu, shape),
            *self._matrix("extra", extra, shape),
            *self._matrix("statistics", statistics, (STATISTICS, self._n), torch.float64),
        )

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._epilogue.column_statistics(
            *place(rows, columns),
            *self._matrix("logits", logits, shape),
            *self._matrix("soft", soft, shape),
            *self._matrix("statistics", statistics, (STATISTICS, self._m), torch.float64),
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
            *place(rows, columns),
            *self._matrix("logits", logits, shape),
            *self._matrix("extra", extra, shape),
            self._side(row_side, self._n),
            (0, 0, 0, 0) if column_side is None else self._side(column_side, self._m),
        )

    def _side(self, side: Side, length: int) -> tuple[int, int, int, int]:
        for tensor in (side.log_sum_exp, side.weight, side.hard, side.smooth):
            assert tensor.shape == (length,)
        return (
            address(side.log_sum_exp, torch.float32, self._device),
            address(side.weight, torch.float32, self._device),
            address(side.hard, torch.float32, self._device),
            address(side.smooth, torch.float32, self._device),
        )


def haversine_km(p: Tensor, q: Tensor, out: Tensor) -> None:
    """Write distances in km of unit vectors (n, 3) and (m, 3) into `out` (n, m), all float32 or float64."""
    p, q = p.contiguous(), q.contiguous()
    haversine = _native.haversine_float64 if out.dtype == torch.float64 else _native.haversine
    haversine(
        address(p, out.dtype, CPU),
        len(p),
        address(q, out.dtype, CPU),
        len(q),
        *matrix("out", out, (len(p), len(q)), out.dtype, CPU),
        torch.get_num_threads(),
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


def address(tensor: Tensor | None, dtype: torch.dtype, device: torch.device) -> int:
    """Address of a contiguous tensor; 0 for None."""
    if tensor is None:
        return 0
    assert tensor.dtype == dtype
    assert tensor.device == device
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def matrix(
    name: str, tensor: Tensor | None, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """Address and row stride of a matrix with contiguous columns; (0, 0) for None.

    Raises:
        ValueError: another shape, dtype or device, or columns that are not contiguous.
    """
    if tensor is None:
        return NOTHING
    contiguous = tensor.stride(1) == 1 or shape[1] == 1
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device or not contiguous:
        raise ValueError(
            f"{name}: wanted {dtype} of shape {shape} on {device} with contiguous columns, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}, strides {tensor.stride()}, "
            f"on {tensor.device}"
        )
    return tensor.data_ptr(), tensor.stride(0)


def place(rows: slice, columns: slice) -> tuple[int, int, int, int]:
    """First row, rows, first column, columns."""
    return rows.start, rows.stop - rows.start, columns.start, columns.stop - columns.start
