"""Every Triton kernel is launched on the GPU of its tensors, whichever is the current one."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.jit import KernelInterface

from semivario_kernels import NegativePolicy
from semivario_kernels.backends import triton
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.backends.triton import (
    binned,
    dissimilarity,
    fused_driver,
    haversine,
    strip_epilogue,
    topk,
)
from semivario_kernels.backends.triton.shipped import shipped_kernels
from semivario_kernels.binned_sums import BinnedRequest
from semivario_kernels.problem import InfoNCEProblem

SECOND = torch.device("cuda", 1)


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels and the devices they were launched on."""
    found, current = [], [torch.device("cuda", 0)]

    @contextmanager
    def launching_on(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    def launch(kernel, grid):
        found.append((kernel.fn.__name__, current[-1]))
        return lambda *_, **__: None

    monkeypatch.setattr(KernelInterface, "__getitem__", launch)
    for module in (binned, dissimilarity, fused_driver, haversine, strip_epilogue, topk):
        monkeypatch.setattr(module, "launching_on", launching_on)
    for module in (fused_driver, strip_epilogue):
        monkeypatch.setattr(module, "capability_of", lambda device: 90)
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    return found


def matrix(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device=SECOND)


def loss(workspace_mb):
    """Row sums, column sums and gradients, of two passes."""
    n, m = 300, 300
    problem = InfoNCEProblem(
        x=matrix(n, 64),
        y=matrix(m, 64),
        logit_scale=matrix(),
        targets=torch.arange(n, device=SECOND),
        policy=NegativePolicy.none(),
        variogram=None,
        query_latlon=None,
        gallery_latlon=None,
        v=None,
        u=None,
        exclude=None,
        label_smoothing=0.0,
        symmetric=True,
        normalize=True,
    )
    driver = triton.driver(problem, workspace_mb)
    driver.run(matrix(n), True, True, True)


def one_tile_of_bins():
    request = BinnedRequest(torch.linspace(0, 4, 5, dtype=torch.float64), 7)
    side = Side(
        matrix(3, 64, dtype=torch.float64),
        matrix(64, dtype=torch.float64),
        matrix(64, dtype=torch.int32),
        None,
    )
    triton.binning([matrix(64, 9)], request).add(side, side, matrix(64, 64), True)


def test_kernels_are_launched_on_their_tensors_gpu(launches):
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss(None)
        loss(32)
        one_tile_of_bins()
        triton.topk_gallery(matrix(9, 8), matrix(70, 8), 3)
        triton.cosine_dissimilarity(matrix(9, 8), matrix(70, 8))
        places = (matrix(9, 3, dtype=torch.float64), matrix(70, 3, dtype=torch.float64))
        triton.pairwise_haversine(*places, torch.float32)
    assert {name for name, _ in launches} == {kernel.name for kernel in shipped_kernels()}
    assert {place for _, place in launches} == {SECOND}
