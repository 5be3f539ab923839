"""The walk over the tiles as a GPU takes it, on the CPU."""

import pytest
import test_cuda
import torch
from test_loss import MODEL, problem
from test_operator import gradients_of
from test_policy import POLICIES

from semivario_kernels.backends import tile_driver


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["explained", "penalty"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_products_in_the_features_own_dtype(symmetric, name, dtype, monkeypatch):
    """What a GPU does: factors, the dissimilarity's product and A are short, sums are float32."""
    n, m = 300, 300 if symmetric else 2000
    p = {k: t.detach() if t.ndim < 2 else t.detach().to(dtype) for k, t in problem(n=n, m=m).items()}
    p["y"][7] = 0  # a gallery entry of length 0 must not cost the others their precision
    for key in ("query_latlon", "gallery_latlon"):
        p[key] = p[key].double()
    exact = {k: t.double() for k, t in p.items()}
    options = {"variogram": MODEL, "policy": POLICIES[name][0], "symmetric": symmetric}
    monkeypatch.setattr(tile_driver, "product_dtype", lambda matrix: matrix.dtype)
    loss, gradients = gradients_of(p, **options, backend="tiled")
    high, high_gradients = gradients_of(exact, **options, backend="reference")
    tolerance = {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]  # the dissimilarity's rounding, mostly
    torch.testing.assert_close(loss.double(), high, rtol=tolerance / 10, atol=0)
    for ours, wanted in zip(gradients[:2], high_gradients[:2], strict=True):
        assert ours.dtype == dtype
        kept = torch.arange(len(wanted)) != 7
        ours, wanted = ours[kept].double(), wanted[kept]
        assert (ours - wanted).abs().max() <= tolerance * wanted.abs().max()
        negatives = slice(n + 1, None)  # of the gallery: small, and far from float16's smallest number
        if wanted[negatives].numel():
            wanted, ours = wanted[negatives], ours[negatives]
            assert (ours - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", test_cuda.POLICIES, ids=lambda policy: policy.kind)
def test_a_gpus_products_are_within_the_tolerance_there(policy, dtype, symmetric, reduction, monkeypatch):
    monkeypatch.setattr(tile_driver, "product_dtype", lambda matrix: matrix.dtype)
    p = test_cuda.problem(333, 333 if symmetric else 1501, dtype)
    options = {"label_smoothing": 0.1, "symmetric": symmetric, "reduction": reduction}
    test_cuda.assert_equals_float64(
        p, {"backend": "tiled"}, variogram=test_cuda.MODEL, policy=policy, **options
    )
