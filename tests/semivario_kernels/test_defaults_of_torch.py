"""torch.set_default_device and set_default_dtype: what is made on the side is as the tensors that came in."""

from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from places import random_latlon
from test_loss import MODEL, problem

from semivario_kernels import (
    NegativePolicy,
    available_backends,
    binned_semivariance,
    cosine_dissimilarity,
    even_edges_km,
    fit_variogram,
    pairwise_haversine,
    quantile_edges_km,
    semivariogram_info_nce,
    topk_gallery,
)

BACKENDS = available_backends()
ALL = sorted(
    {*BACKENDS, "triton"} if find_spec("triton") else BACKENDS
)  # in the interpreter, where it is quick


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(params=["device", torch.float64, torch.bfloat16], ids=str)
def another_default(request):
    """Of the device "meta", as "cuda" would be where there is no GPU; or of the dtype."""
    return torch.device("meta") if request.param == "device" else default_dtype(request.param)


def loss_and_gradients(p, **options):
    """With a policy and a semivariogram made here, as in a script that set the default device first."""
    leaves = [p[name].requires_grad_() for name in ("x", "y", "logit_scale")]
    options |= {"policy": NegativePolicy.explained(2, 4), "variogram": replace(MODEL)}
    loss = semivariogram_info_nce(**p, label_smoothing=0.1, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), leaves)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ALL)
def test_loss(backend, reduction, symmetric, another_default):
    p = {k: t.detach() if "latlon" in k else t.detach().float() for k, t in problem(m=11).items()}
    options = {"backend": backend, "reduction": reduction, "symmetric": symmetric}
    wanted = loss_and_gradients(p, **options)
    with another_default:
        got = loss_and_gradients(p, **options)
    for ours, right in zip(got, wanted, strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "matheron"},
        {"estimator": "cressie-hawkins", "max_lag_km": 3000.0},
        {"estimator": "dowd", "max_pairs": 20_000, "seed": 3},
    ],
    ids=lambda options: options["estimator"],
)
@pytest.mark.parametrize("two_sets", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_binned_semivariance(backend, two_sets, options, tmp_path, another_default):
    latlon = random_latlon(700, seed=3)
    v = torch.randn(700, 9, generator=torch.Generator().manual_seed(1))
    sides = (v[:300], latlon[:300]) if two_sets else (v, latlon)
    other = {"other": v[300:], "other_latlon": latlon[300:]} if two_sets else {}
    edges = [0.0, 2000.0, 5000.0, 9000.0]

    def measured():
        return binned_semivariance(
            *sides, **other, **options, edges_km=edges, checkpoint=tmp_path / "run", backend=backend
        )

    wanted = measured()
    with another_default:
        got = measured()
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_array_equal(got.gamma, wanted.gamma)


@pytest.mark.parametrize("backend", ALL)
def test_the_other_operators(backend, another_default):
    latlon = random_latlon(60, seed=3)
    v = torch.randn(60, 9, generator=torch.Generator().manual_seed(1))
    queries = v[: 2 if backend == "triton" else 20]  # the interpreter is slow

    def results():
        return (
            *topk_gallery(queries, v, 3, backend=backend),
            *topk_gallery(queries.bfloat16(), v.bfloat16(), 3, backend=backend),
            cosine_dissimilarity(v, backend=backend),
            pairwise_haversine(latlon, latlon, backend=backend),
            torch.from_numpy(quantile_edges_km(latlon, 5)),
        )

    wanted = results()
    with another_default:
        got = results()
    for ours, right in zip(got, wanted, strict=True):
        assert torch.equal(ours, right)


def test_fit(another_default):
    latlon = random_latlon(700, seed=3)
    v = torch.randn(700, 9, generator=torch.Generator().manual_seed(1)) + torch.sin(latlon[:, :1] / 20)
    edges = even_edges_km(9000.0, 20)

    def fitted():
        return fit_variogram(binned_semivariance(v, latlon, edges_km=edges), metric="chord")

    wanted = fitted()
    with another_default:
        got = fitted()
    assert str(got) == str(wanted)
