"""Builds of the compiled kernels that this machine runs: per instruction set, and the GPU's.

The GPU's run on the CPU, by cuda_host_build.py, and on a GPU where there is one, in the same tests.
"""

import os
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import cuda_host_build
import pytest
import torch

from semivario_kernels.backends import cuda_epilogue, native, native_epilogue
from semivario_kernels.backends.cuda_epilogue import CudaEpilogue
from semivario_kernels.backends.native_epilogue import NativeEpilogue
from semivario_kernels.backends.tile_driver import Side

REASON = native_epilogue.unavailable_reason()
SKIP = pytest.mark.skipif(REASON is not None, reason=f"the native kernels are not there: {REASON}")
CUDA_ON_HOST, CUDA = "cuda-on-host", "cuda"
SKIP_CUDA_ON_HOST = pytest.mark.skipif(
    cuda_host_build.unavailable_reason() is not None, reason=str(cuda_host_build.unavailable_reason())
)


def runs(isa: str) -> bool:
    if REASON is not None:
        return False
    before = os.environ.get("SEMIVARIO_ISA")
    os.environ["SEMIVARIO_ISA"] = isa
    try:
        native_epilogue.haversine_km(torch.eye(3), torch.eye(3), torch.empty(3, 3))
    except ValueError:
        return False
    finally:
        del os.environ["SEMIVARIO_ISA"]
        if before is not None:
            os.environ["SEMIVARIO_ISA"] = before
    return True


RUNNABLE = [isa for isa in ("baseline", "avx2", "avx512") if runs(isa)] or ["baseline"]
BUILDS = [
    *RUNNABLE,
    pytest.param(CUDA_ON_HOST, marks=SKIP_CUDA_ON_HOST),
    *([CUDA] if torch.cuda.is_available() and native.unavailable(torch.device("cuda")) is None else []),
]

_selected = RUNNABLE[-1]


def select(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the functions below use a build until the test ends."""
    monkeypatch.setattr("native_isa._selected", build)
    if build == CUDA_ON_HOST:
        monkeypatch.setattr(cuda_epilogue, "_native_cuda", cuda_host_build.host_module())
        monkeypatch.setattr(cuda_epilogue, "queue_of", lambda device: {"device": 0, "stream": 0})
    elif build != CUDA:
        monkeypatch.setenv("SEMIVARIO_ISA", build)


class Elsewhere:
    """Copies of tensors on the device of the selected build, with their whole storage around them."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if _selected == CUDA else "cpu")
        self._storages: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def copy(self, value: Any) -> Any:
        """A tensor's copy; other values as they are."""
        if not isinstance(value, torch.Tensor):
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._storages:
            whole = torch.empty(0, dtype=value.dtype).set_(storage)
            self._storages[storage.data_ptr()] = whole, whole.to(self._device, copy=True)
        _, there = self._storages[storage.data_ptr()]
        return there.as_strided(value.shape, value.stride(), value.storage_offset())

    def copy_back(self) -> None:
        for whole, there in self._storages.values():
            whole.copy_(there)


class CudaEpilogueOfHostTensors:
    """`CudaEpilogue` that takes the tests' tensors, which lie on the CPU."""

    def __init__(self, prepared: SimpleNamespace) -> None:
        elsewhere = Elsewhere()
        self._epilogue = CudaEpilogue(
            SimpleNamespace(**{name: elsewhere.copy(value) for name, value in vars(prepared).items()})
        )

    def _call(self, method: str, *arguments: Any) -> None:
        elsewhere = Elsewhere()
        copies = [
            Side(*(elsewhere.copy(getattr(value, field.name)) for field in fields(Side)))
            if isinstance(value, Side)
            else elsewhere.copy(value)
            for value in arguments
        ]
        getattr(self._epilogue, method)(*copies)
        elsewhere.copy_back()

    def forward(self, *arguments: Any) -> None:
        self._call("forward", *arguments)

    def column_statistics(self, *arguments: Any) -> None:
        self._call("column_statistics", *arguments)

    def gradient(self, *arguments: Any) -> None:
        self._call("gradient", *arguments)

    def terms(self, h: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
        elsewhere = Elsewhere()
        h_there, d_there, out_there = map(elsewhere.copy, (h, d, out))
        _terms(self._epilogue, h_there, d_there, out_there)
        elsewhere.copy_back()


def _terms(epilogue: NativeEpilogue, h: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
    epilogue._epilogue.terms(len(h), *(t.data_ptr() for t in (h, h, d, *out)))


def is_cuda() -> bool:
    return _selected in (CUDA_ON_HOST, CUDA)


def make_epilogue(prepared: SimpleNamespace) -> Any:
    """The epilogue of the selected build, for tensors on the CPU."""
    return CudaEpilogueOfHostTensors(prepared) if is_cuda() else NativeEpilogue(prepared)


def terms(prepared: SimpleNamespace, h: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
    """Write ρ, γ, a, b, f of pairs into `out` (5, n) from float32 h, which is the lag as well, and d."""
    if is_cuda():
        CudaEpilogueOfHostTensors(prepared).terms(h, d, out)
    else:
        _terms(NativeEpilogue(prepared), h, d, out)


def haversine_km(p: torch.Tensor, q: torch.Tensor, out: torch.Tensor) -> None:
    """Write distances in km of float32 unit vectors into `out` (n, m)."""
    if not is_cuda():
        return native_epilogue.haversine_km(p, q, out)
    elsewhere = Elsewhere()
    cuda_epilogue.haversine_km(*map(elsewhere.copy, (p, q, out)))
    elsewhere.copy_back()


def pair_distances(p: torch.Tensor, q: torch.Tensor, h: torch.Tensor, chord: torch.Tensor) -> None:
    """Write h and chord in km of float32 unit vectors (n, 3) and (n, 3), pair by pair."""
    if not is_cuda():
        native_epilogue._native.pair_distances(len(p), *(t.data_ptr() for t in (p, q, h, chord)))
        return
    elsewhere = Elsewhere()
    p, q, h, chord = map(elsewhere.copy, (p, q, h, chord))
    axes = cuda_epilogue.axes_of(q)
    cuda_epilogue.native_cuda().pair_distances(
        **cuda_epilogue.queue_of(p.device),
        count=len(p),
        p=p.data_ptr(),
        q=axes.data_ptr(),
        q_stride=axes.stride(0),
        h=h.data_ptr(),
        chord=chord.data_ptr(),
    )
    elsewhere.copy_back()
