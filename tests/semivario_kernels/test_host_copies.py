"""A step on a GPU copies nothing from the host and waits for nothing: every operation, on fake tensors."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semivario_kernels import GalleryInfoNCE, NegativePolicy, SemivariogramInfoNCE, VariogramModel
from semivario_kernels.backends import tiled
from semivario_kernels.problem import InfoNCEProblem

N, M, D, E = 300, 3001, 64, 40
MODEL = VariogramModel("stable", 0.1, 0.7, 2500.0, 0.45)
CUDA = torch.device("cuda", 0)


class HostCopies(TorchDispatchMode):
    """Notes what goes from one device to another; reading a fake tensor's value raises by itself."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # in torch 2.11 the fake kernel of this one takes the dtype for beta
        broken = function is torch.ops.aten.addmm.dtype_out
        result = kwargs["out"] if broken else function(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        places = {t.device.type for t in tensors}
        self.operations += places == {"cuda"}
        copies = function.namespace == "aten" and function.overloadpacket.__name__ in ("_to_copy", "copy_")
        if copies and len(places) > 1:
            self.found.append(str(function))
        return result


def features(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device=CUDA)


def test_a_copy_is_found():
    with FakeTensorMode(), HostCopies() as copies:
        torch.as_tensor(14.3, device=CUDA)
    assert copies.found == ["aten._to_copy.default"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_logit_scale_in_python_is_filled_in_on_the_gpu(dtype):
    with FakeTensorMode(), HostCopies() as copies:
        x, y = features(N, D, dtype=dtype), features(N, D, dtype=dtype)
        GalleryInfoNCE()(x, y, 14.3)
        loss = SemivariogramInfoNCE(policy=NegativePolicy.none())(x, y, None, None, 14.3)
    assert loss.device == CUDA
    assert copies.found == []
    assert copies.operations > 4


def problem(policy, symmetric):
    n, m = N, N if symmetric else M
    return InfoNCEProblem(
        x=features(n, D),
        y=features(m, D),
        logit_scale=features(dtype=torch.float32),
        targets=torch.arange(n, device=CUDA),
        policy=policy,
        variogram=MODEL if policy.reads_dissimilarity else None,
        query_latlon=features(n, 2, dtype=torch.float64),
        gallery_latlon=features(m, 2, dtype=torch.float64),
        v=features(n, E) if policy.reads_dissimilarity else None,
        u=features(m, E) if policy.reads_dissimilarity else None,
        exclude=torch.ones(n, 2, dtype=torch.int64, device=CUDA),
        label_smoothing=0.1,
        symmetric=symmetric,
        normalize=True,
    )


@pytest.fixture
def triton_without_launches(monkeypatch):
    """Its drivers, whose kernels cannot run here."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime.jit import KernelInterface

    from semivario_kernels.backends.triton import fused_driver, strip_epilogue

    monkeypatch.setattr(KernelInterface, "__getitem__", lambda kernel, grid: lambda *_, **__: None)
    for module in (fused_driver, strip_epilogue):
        monkeypatch.setattr(module, "capability_of", lambda device: 90)
        monkeypatch.setattr(module, "launching_on", lambda tensor: nullcontext())
    gpu = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "policy", [NegativePolicy.none(), NegativePolicy.rectify(0.4, 3.0, 5.0)], ids=lambda policy: policy.kind
)
@pytest.mark.parametrize("way", ["tiled", "strips", "fused"])
def test_drivers(triton_without_launches, way, policy, symmetric):
    from semivario_kernels.backends import triton

    with FakeTensorMode(), HostCopies() as copies:
        wanted = problem(policy, symmetric)
        driver = (tiled if way == "tiled" else triton).driver(wanted, 32 if way == "fused" else None)
        weights = features(N, dtype=torch.float32)
        result = driver.run(weights, True, True, True)
        again = driver.gradient(weights, result.row_statistics, result.column_statistics, True, True, True)
    for dx, dy, ds in ((result.dx, result.dy, result.ds), again):
        assert (dx.shape, dy.shape, ds.shape) == (wanted.x.shape, wanted.y.shape, ())
    assert copies.found == []
    assert copies.operations > 20
