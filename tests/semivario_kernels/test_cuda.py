"""The operators on a GPU: needs torch, numpy and pytest only, and is skipped where there is none."""

import pytest
import torch
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    available_backends,
    binned_semivariance,
    even_edges_km,
    pairwise_haversine,
    semivariogram_info_nce,
    topk_gallery,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MODEL = VariogramModel("stable", 0.05, 0.8, 300.0, 0.5)
POLICIES = [
    NegativePolicy.none(),
    NegativePolicy.semivariogram(3.0, 5.0, 0.1),
    NegativePolicy.explained(3.0, 5.0, 0.1),
    NegativePolicy.threshold(3.0, 5.0, 200.0, 0.1),
    NegativePolicy.rectify(0.4, 3.0, 5.0, 0.1),
    NegativePolicy.penalty(200.0),
    NegativePolicy.distance(-0.7, 150.0),
    NegativePolicy.distance_linear(3.0, 150.0),
]
BACKENDS = available_backends("cuda") if torch.cuda.is_available() else ["reference"]
LEAVES = ("x", "y", "logit_scale")


def problem(n, m, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(n + m, seed)])
    return {
        "x": torch.randn(n, 67, generator=g, dtype=torch.float64).to(dtype),
        "y": torch.randn(m, 67, generator=g, dtype=torch.float64).to(dtype),
        "query_latlon": places[torch.randperm(len(places), generator=g)[:n]],
        "gallery_latlon": places[torch.randperm(len(places), generator=g)[:m]],
        "logit_scale": torch.tensor(12.0, dtype=torch.float64),
        "query_embeddings": (torch.randn(n, 45, generator=g, dtype=torch.float64) + 0.5).to(dtype),
        "gallery_embeddings": (torch.randn(m, 45, generator=g, dtype=torch.float64) + 0.5).to(dtype),
    }


def gradients_of(p, **options):
    leaves = [p[name].clone().requires_grad_() for name in LEAVES]
    loss = semivariogram_info_nce(**{**p, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(8)).to(loss)
    return loss.detach(), torch.autograd.grad(loss, leaves, upstream)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_float64_reference(backend, policy, dtype, symmetric, reduction):
    p = problem(333, 333 if symmetric else 1501, dtype)
    options = {
        "variogram": MODEL,
        "policy": policy,
        "label_smoothing": 0.1,
        "symmetric": symmetric,
        "reduction": reduction,
    }
    loss, gradients = gradients_of({k: t.cuda() for k, t in p.items()}, backend=backend, **options)
    high, high_gradients = gradients_of({k: t.double() for k, t in p.items()}, backend="reference", **options)
    low, low_gradients = gradients_of(p, backend="reference", **options)
    tolerance = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    for ours, reference, wanted in zip(
        (loss, *gradients), (low, *low_gradients), (high, *high_gradients), strict=True
    ):
        error = (ours.cpu().double() - wanted).abs().max()
        allowed = (reference.double() - wanted).abs().max()
        assert error <= allowed + tolerance * wanted.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_give_nan_and_are_named_on_request(backend, monkeypatch):
    p = {k: t.cuda() for k, t in problem(5, 9, torch.float32).items()}
    p["gallery_latlon"][3, 0] = 95.0
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(), "backend": backend}
    assert semivariogram_info_nce(**p, **options).isnan()
    monkeypatch.setenv("SEMIVARIO_CHECK", "1")
    with pytest.raises(ValueError, match=r"gallery_latlon: .*in row 3"):
        semivariogram_info_nce(**p, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matrices_rankings_and_bins(backend):
    latlon = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(700, 2)])
    v = torch.randn(len(latlon), 31, generator=torch.Generator().manual_seed(1))
    wanted = pairwise_haversine(latlon, backend="reference")
    got = pairwise_haversine(latlon.cuda(), backend=backend).cpu()
    assert ((got - wanted).abs() <= torch.clamp(1e-6 * wanted, min=1e-3)).all()
    values, indices = topk_gallery(v[:50].cuda(), v.cuda(), 7, backend=backend)
    torch.testing.assert_close(
        values.cpu(), topk_gallery(v[:50], v, 7, backend="reference")[0], rtol=1e-5, atol=1e-5
    )
    assert (indices[:, 0].cpu() == torch.arange(50)).float().mean() > 0.9
    edges = even_edges_km(20100.0, 30)
    on_gpu = binned_semivariance(v.cuda(), latlon.cuda(), edges_km=edges, backend=backend)
    on_cpu = binned_semivariance(v, latlon, edges_km=edges, backend="reference")
    assert (on_gpu.counts == on_cpu.counts).all()
    torch.testing.assert_close(
        torch.from_numpy(on_gpu.gamma), torch.from_numpy(on_cpu.gamma), rtol=1e-6, atol=0, equal_nan=True
    )
