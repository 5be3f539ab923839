"""Builds of the compiled kernels that this machine runs: by instruction set, and the GPU's on the CPU."""

import os
from types import SimpleNamespace

import cuda_host_build
import pytest
import torch

from semivario_kernels.backends import cuda_epilogue, native_epilogue
from semivario_kernels.backends.cuda_epilogue import CudaEpilogue
from semivario_kernels.backends.native_epilogue import NativeEpilogue

REASON = native_epilogue.unavailable_reason()
SKIP = pytest.mark.skipif(REASON is not None, reason=f"the native kernels are not there: {REASON}")
CUDA_ON_HOST = "cuda-on-host"
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
BUILDS = [*RUNNABLE, pytest.param(CUDA_ON_HOST, marks=SKIP_CUDA_ON_HOST)]

_selected = RUNNABLE[-1]


def select(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `make_epilogue` and `haversine_km` use a build until the test ends."""
    monkeypatch.setattr("native_isa._selected", build)
    if build == CUDA_ON_HOST:
        monkeypatch.setattr(cuda_epilogue, "_native_cuda", cuda_host_build.host_module())
        monkeypatch.setattr(cuda_epilogue, "queue_of", lambda device: {"device": 0, "stream": 0})
    else:
        monkeypatch.setenv("SEMIVARIO_ISA", build)


def make_epilogue(prepared: SimpleNamespace) -> NativeEpilogue:
    return CudaEpilogue(prepared) if _selected == CUDA_ON_HOST else NativeEpilogue(prepared)


def haversine_km(p: torch.Tensor, q: torch.Tensor, out: torch.Tensor) -> None:
    (cuda_epilogue if _selected == CUDA_ON_HOST else native_epilogue).haversine_km(p, q, out)


def pair_distances(p: torch.Tensor, q: torch.Tensor, h: torch.Tensor, chord: torch.Tensor) -> None:
    """Write h and chord in km of float32 unit vectors (n, 3) and (n, 3), pair by pair."""
    if _selected != CUDA_ON_HOST:
        native_epilogue._native.pair_distances(len(p), *(t.data_ptr() for t in (p, q, h, chord)))
        return
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
