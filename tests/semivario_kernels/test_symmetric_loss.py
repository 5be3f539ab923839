"""Sample4Geo's loss: symmetric InfoNCE with label smoothing 0.1 and a learnable logit scale."""

import math

import pytest
import torch
from places import random_latlon
from torch.nn.functional import cross_entropy, normalize

from semivario_kernels import NegativePolicy, VariogramModel, available_backends, semivariogram_info_nce
from semivario_kernels.backends import tile_driver

MODEL = VariogramModel("exponential", 0.1, 0.8, 2000.0)
POLICIES = {
    "semivariogram": NegativePolicy.semivariogram(2, 3),
    "explained": NegativePolicy.explained(1, 6, far=2),
}
N, D, E = 83, 37, 29
# of the largest entry of each gradient
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
RUNS = [
    (name, dtype)
    for name in available_backends()
    for dtype in ((torch.float64, torch.float32) if name in ("reference", "tiled") else (torch.float32,))
]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tile_driver, "ROW_BLOCK", 16)
    monkeypatch.setattr(tile_driver, "COLUMN_TILE", 24)


def batch(dtype):
    """Features, log of the scale, places, embeddings; equal numbers in both dtypes."""
    g = torch.Generator().manual_seed(5)
    x, y = (torch.randn(N, D, generator=g).to(dtype).requires_grad_() for _ in range(2))
    v, u = (torch.randn(N, E, generator=g).to(dtype) + 0.5 for _ in range(2))
    log_scale = torch.tensor(math.log(1 / 0.07), dtype=torch.float32).to(dtype).requires_grad_()
    return x, y, log_scale, random_latlon(N, 1), v, u


def log_weights(policy, latlon, v, u):
    """b of all pairs but the diagonal, in float64, from the policy's definition."""
    v, u = normalize(v.double(), dim=1), normalize(u.double(), dim=1)
    latitude, longitude = torch.deg2rad(latlon).T
    haversine = (
        torch.sin((latitude[:, None] - latitude) / 2) ** 2
        + torch.cos(latitude[:, None])
        * torch.cos(latitude)
        * torch.sin((longitude[:, None] - longitude) / 2) ** 2
    )
    h = 2 * 6371.0088 * torch.asin(haversine.sqrt())
    rho = torch.exp(-h / 2000.0)
    d = 1 - v @ u.T
    surprise = (0.1 + 0.8 * (1 - rho) - d).clamp(min=0)
    if policy == "semivariogram":
        b = surprise * (2 * (1 - rho) - 3 * rho)
    else:
        b = (surprise + 2) * (1 - rho) - 6 * rho * (1 - d / 0.9).clamp(min=0)
    return b.fill_diagonal_(0)


def check_gradients(loss, wanted, leaves, wanted_leaves, tolerance):
    assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
    ours, theirs = torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(3 * wanted, wanted_leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_equals_torch_without_a_policy(backend, dtype, normalized):
    x, y, log_scale, *_ = batch(dtype)
    oracle = [t.detach().double().requires_grad_() for t in (x, y, log_scale)]
    x64, y64 = (normalize(t, dim=1) if normalized else t / 7 for t in oracle[:2])
    s = oracle[2].exp() * x64 @ y64.T
    wanted = (
        cross_entropy(s, torch.arange(N), label_smoothing=0.1)
        + cross_entropy(s.T, torch.arange(N), label_smoothing=0.1)
    ) / 2
    ours = semivariogram_info_nce(
        x if normalized else x / 7,
        y if normalized else y / 7,
        None,
        None,
        log_scale.exp(),
        policy=NegativePolicy.none(),
        label_smoothing=0.1,
        symmetric=True,
        normalize=normalized,
        backend=backend,
    )
    check_gradients(ours, wanted, [x, y, log_scale], oracle, TOLERANCE[dtype])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_equals_a_brute_force_with_a_policy(backend, dtype, policy):
    x, y, log_scale, latlon, v, u = batch(dtype)
    oracle = [t.detach().double().requires_grad_() for t in (x, y, log_scale)]
    b = log_weights(policy, latlon, v, u)
    assert b.abs().max() > 0.5  # the policy says something
    s = oracle[2].exp() * normalize(oracle[0], dim=1) @ normalize(oracle[1], dim=1).T + b
    wanted = (
        cross_entropy(s, torch.arange(N), label_smoothing=0.1)
        + cross_entropy(s.T, torch.arange(N), label_smoothing=0.1)
    ) / 2
    ours = semivariogram_info_nce(
        x,
        y,
        latlon,
        latlon,
        log_scale.exp(),
        variogram=MODEL,
        policy=POLICIES[policy],
        query_embeddings=v,
        gallery_embeddings=u,
        label_smoothing=0.1,
        symmetric=True,
        backend=backend,
    )
    # distances are good to a metre (float32 unit vectors), γ by as much of 0.8 / 2,000 km
    tolerance = 5e-6 if dtype == torch.float32 else 1e-9
    check_gradients(ours, wanted, [x, y, log_scale], oracle, tolerance)


@pytest.mark.parametrize(("backend", "dtype"), RUNS)
def test_semi_positives_leave_rows_and_columns(backend, dtype):
    x, y, log_scale, *_ = batch(dtype)
    oracle = [t.detach().double().requires_grad_() for t in (x, y, log_scale)]
    g = torch.Generator().manual_seed(6)
    dead = torch.rand(N, N, generator=g) < 0.05
    dead = (dead | dead.T).fill_diagonal_(False)  # a relation of pairs: symmetric
    s = (oracle[2].exp() * normalize(oracle[0], dim=1) @ normalize(oracle[1], dim=1).T).masked_fill(
        dead, -math.inf
    )
    wanted = sum(_smoothed(logits, dead) for logits in (s, s.T)) / 2
    exclude = torch.full((N, int(dead.sum(dim=1).max())), -1)
    for i in range(N):
        own = dead[i].nonzero()[:, 0]
        exclude[i, : len(own)] = own
    ours = semivariogram_info_nce(
        x,
        y,
        None,
        None,
        log_scale.exp(),
        policy=NegativePolicy.none(),
        exclude=exclude,
        label_smoothing=0.1,
        symmetric=True,
        backend=backend,
    )
    check_gradients(ours, wanted, [x, y, log_scale], oracle, TOLERANCE[dtype])


def _smoothed(logits, dead):
    """Mean cross entropy, ε = 0.1 spread over the live entries of each row."""
    log_p = logits.log_softmax(dim=1)
    uniform = log_p.masked_fill(dead, 0).sum(dim=1) / (~dead).sum(dim=1)
    return -(0.9 * log_p.diagonal() + 0.1 * uniform).mean()
