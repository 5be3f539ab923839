"""The GPU kernels of `csrc/cuda/`, with the interface of `tile_driver.Epilogue`: tensors in, addresses on.

Every call launches on the device's current stream and returns; nothing waits for the GPU.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from semivario_kernels.backends.native_epilogue import NativeEpilogue, address, matrix, place
from semivario_kernels.backends.tile_driver import STATISTICS, Prepared, Side

Tensor = torch.Tensor
QUAD = 4  # float32 values of a 16-byte access


def _load() -> tuple[Any, str | None]:
    try:
        return importlib.import_module("semivario_kernels._native_cuda"), None
    except ModuleNotFoundError as error:
        return None, f"{error}: the package was built without CUDA (SEMIVARIO_CUDA=1 and nvcc build it)"
    except ImportError as error:
        return None, str(error)


_native_cuda, _reason = _load()


def unavailable_reason(device: torch.device) -> str | None:
    """Say why the compiled kernels cannot serve a CUDA device; None where they can."""
    if _reason is not None:
        return _reason
    if torch.version.hip is not None:
        return "compiled for NVIDIA GPUs, this torch is built for AMD's"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    problem: str = _device_problem(torch.cuda.current_device() if device.index is None else device.index)
    return problem or None


def native_cuda() -> Any:
    """Return the extension."""
    return _native_cuda


@functools.cache
def _device_problem(index: int) -> str:
    problem: str = _native_cuda.device_problem(index)
    return problem


def queue_of(device: torch.device) -> dict[str, int]:
    """Index of the device and handle of its current stream."""
    stream = torch.cuda.current_stream(device)
    return {"device": stream.device_index, "stream": stream.cuda_stream}


class CudaEpilogue(NativeEpilogue):
    """`tile_driver.Epilogue` in CUDA C++: one pass over the tile, bit for bit repeatable.

    The products `vu` and the gradient's `out` may be float32, bfloat16 or float16.

    Raises:
        ValueError: arithmetic in float64, or a nested variogram of more than 16 structures.
    """

    def _make(self, prepared: Prepared, **arguments: Any) -> Any:
        axes = self._kept["q"] = None if prepared.q is None else axes_of(prepared.q)
        self._scale = prepared.scale.float()
        return _native_cuda.Epilogue(
            **arguments,
            **self._kept_addresses(),
            q_stride=0 if axes is None else axes.stride(0),
            scale=address(self._scale, torch.float32, self._device),
            **queue_of(self._device),
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
        scratch = self._scratch(_native_cuda.forward_scratch(*shape))
        self._epilogue.forward(
            *place(rows, columns),
            self._matrix("dot", dot, shape),
            self._any_matrix("vu", vu, shape),
            self._matrix("extra", extra, shape),
            self._matrix("statistics", statistics, (STATISTICS, self._n), torch.float64),
            scratch.data_ptr(),
        )

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        scratch = self._scratch(_native_cuda.column_statistics_scratch(*shape))
        self._epilogue.column_statistics(
            *place(rows, columns),
            self._matrix("logits", logits, shape),
            self._matrix("soft", soft, shape),
            self._matrix("statistics", statistics, (STATISTICS, self._m), torch.float64),
            scratch.data_ptr(),
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
        """Write A into `out`, the logits' own buffer or another."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        self._epilogue.gradient(
            *place(rows, columns),
            self._matrix("logits", logits, shape),
            self._matrix("extra", extra, shape),
            self._side(row_side, self._n),
            (0, 0, 0, 0) if column_side is None else self._side(column_side, self._m),
            self._any_matrix("out", out, shape),
        )

    def _any_matrix(self, name: str, tensor: Tensor | None, shape: tuple[int, int]) -> tuple[int, int, str]:
        """Address, row stride and dtype."""
        dtype = torch.float32 if tensor is None else tensor.dtype
        return *matrix(name, tensor, shape, dtype, self._device), str(dtype).removeprefix("torch.")

    def _scratch(self, size: int) -> Tensor:
        # given back at once: what takes it next runs behind these kernels, on the same stream
        return torch.empty(size, dtype=torch.float32, device=self._device)


def axes_of(q: Tensor) -> Tensor:
    """(M, 3) unit vectors as (3, M or a few more): every axis starts at a multiple of 16 bytes."""
    axes = q.new_empty(3, -(-len(q) // QUAD) * QUAD)
    axes[:, : len(q)] = q.T
    return axes


def haversine_km(p: Tensor, q: Tensor, out: Tensor) -> None:
    """Write the distances in km of float32 unit vectors (n, 3) and (m, 3) into `out` (n, m), float32."""
    p, axes = p.contiguous(), axes_of(q)
    _native_cuda.haversine(
        **queue_of(p.device),
        p=address(p, torch.float32, p.device),
        rows=len(p),
        q=address(axes, torch.float32, p.device),
        q_stride=axes.stride(0),
        columns=len(q),
        out=matrix("out", out, (len(p), len(q)), torch.float32, p.device),
    )
