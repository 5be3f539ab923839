"""The C++ headers value by value against float64: a million pairs per instruction set."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from native_isa import BUILDS, SKIP, pair_distances, select, terms
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import NegativePolicy, VariogramModel
from semivario_kernels.geometry import EARTH_RADIUS_KM, unit_vectors
from semivario_kernels.policy import PairTerms

pytestmark = [SKIP, pytest.mark.parametrize("isa", BUILDS)]

PAIRS = 2**20
KINDS = [("stable", 0.25), ("stable", 0.45), ("stable", 1.0), ("stable", 2.0)] + [
    (kind, 1.0) for kind in ("exponential", "gaussian", "spherical", "matern32")
]
STRENGTHS = {"hard": 2.5, "false": 4.0}
POLICIES = [
    NegativePolicy.semivariogram(**STRENGTHS, tolerance=0.03),
    NegativePolicy.explained(**STRENGTHS, tolerance=0.03, far=1.5),
    NegativePolicy.threshold(**STRENGTHS, range_km=333.3),
    NegativePolicy.rectify(0.7, **STRENGTHS),
    NegativePolicy.penalty(700.1),
    NegativePolicy.distance(5.0, 120.0),
    NegativePolicy.distance(-0.5, 120.0),
    NegativePolicy.distance_linear(2.0, 120.0),
    NegativePolicy.none(),
]


@pytest.fixture(autouse=True)
def instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    select(isa, monkeypatch)


def float32_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """A million pairs of float32 unit vectors: anywhere, close by, nearly antipodal, and special places."""
    generator = torch.Generator().manual_seed(1)
    a, b = random_latlon(PAIRS, 2), random_latlon(PAIRS, 3)
    third = PAIRS // 3
    metres = 10 ** (8 * torch.rand(third, 1, generator=generator, dtype=torch.float64) - 2)
    step = torch.randn(third, 2, generator=generator, dtype=torch.float64) * metres / 111e3
    b[:third] = a[:third] + step
    b[third : 2 * third, 0] = -a[third : 2 * third, 0] + step[:, 0]
    b[third : 2 * third, 1] = a[third : 2 * third, 1] + 180 + step[:, 1]
    b[:, 0].clamp_(-90, 90)
    special = torch.tensor(list(product(SPECIAL_PLACES, SPECIAL_PLACES)), dtype=torch.float64)
    a[-len(special) :], b[-len(special) :] = special[:, 0], special[:, 1]
    return unit_vectors(a).float().contiguous(), unit_vectors(b).float().contiguous()


def native_terms(policy: NegativePolicy, model: VariogramModel, h: torch.Tensor, d: torch.Tensor):
    """(ρ, γ, a, b, f) of pairs from float32 h (which is the lag as well) and d."""
    place, out = torch.eye(3)[:1], torch.full((5, len(h)), torch.nan)
    prepared = SimpleNamespace(
        problem=SimpleNamespace(policy=policy, variogram=model),
        n=1,
        m=1,
        dtype=torch.float32,
        scale=torch.tensor(1.0),
        p=place,
        q=place,
        inverse_y=None,
        inverse_v=None,
        inverse_u=None,
        targets=torch.zeros(1, dtype=torch.int64),
    )
    terms(prepared, h, d, out)
    return out.double()


def lags_and_dissimilarities() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    h = 10 ** (7 * torch.rand(PAIRS, generator=generator, dtype=torch.float64) - 2.7)
    h[:4] = torch.tensor([0.0, 1e-6, 20015.115, 333.3])
    d = 2 * torch.rand(PAIRS, generator=generator, dtype=torch.float64) ** 2
    d[4:6] = torch.tensor([0.0, 2.0])
    return h.float(), d.float()


def test_distances_lie_within_a_metre_or_a_millionth():
    p, q = float32_pairs()
    h, chord = torch.full((PAIRS,), torch.nan), torch.full((PAIRS,), torch.nan)
    pair_distances(p, q, h, chord)
    near = (p.double() - q.double()).norm(dim=1)
    far = (p.double() + q.double()).norm(dim=1)
    expected = 2 * EARTH_RADIUS_KM * torch.atan2(near, far)
    allowed = (1e-6 * expected).clamp(min=1e-3)
    assert ((h.double() - expected).abs() / allowed).max() < 1
    assert h[(p == q).all(dim=1)].eq(0).all()
    close = expected < 1000
    assert ((h.double() - expected).abs()[close] <= 3e-7 * expected[close] + 1e-12).all()
    assert ((chord.double() - EARTH_RADIUS_KM * near).abs() <= 3e-7 * EARTH_RADIUS_KM * near + 1e-12).all()


@pytest.mark.parametrize(("kind", "alpha"), KINDS)
def test_semivariance_lies_within_a_millionth(kind: str, alpha: float):
    h, d = lags_and_dissimilarities()
    model = VariogramModel(kind, 0.1, 0.7, 250.0, alpha)
    rho, gamma, *_ = native_terms(NegativePolicy.none(), model, h, d)
    expected = model.torch_correlation(h.double())
    assert (rho - expected).abs().max() < 1e-6
    assert (gamma - (0.1 + 0.7 * (1 - expected))).abs().max() < 1e-6
    assert rho[0] == 1
    assert gamma[0] == np.float32(0.1)
    x = -expected.log() if kind != "spherical" else torch.zeros_like(expected)
    visible = (expected > 1e-30) & (x < 20)
    relative = ((rho - expected) / expected).abs()[visible]
    assert (relative <= 1e-6 * (1 + x[visible] * max(1, alpha * 2))).all() or kind == "spherical"


def test_nested_semivariance():
    h, d = lags_and_dissimilarities()
    model = VariogramModel(
        ("stable", "spherical", "matern32"), 0.05, (0.2, 0.3, 0.1), (50.0, 900.0, 3000.0), (0.6, 1.0, 1.0)
    )
    rho, gamma, *_ = native_terms(NegativePolicy.none(), model, h, d)
    assert (rho - model.torch_correlation(h.double())).abs().max() < 1e-6
    assert (gamma - model(h.double())).abs().max() < 1e-6


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("nugget", [0.0, 0.1])
def test_policy_lies_within_a_millionth_of_its_strengths(policy: NegativePolicy, nugget: float):
    h, d = lags_and_dissimilarities()
    model = VariogramModel("stable", nugget, 0.7, 250.0, 0.45)
    _, _, *got = native_terms(policy, model, h, d)
    rho = model.torch_correlation(h.double())
    gamma = model.nugget + model.total_psill * (1 - rho)
    expected = policy.torch_terms(h.double(), d.double(), gamma, rho, model.sill)
    strength = policy.hard + policy.false + policy.far + policy.strength + abs(policy.weight)
    for value, wanted, neutral in zip(got, expected, PairTerms(1.0, 0.0, 0.0), strict=True):
        wanted = torch.full_like(value, neutral) if wanted is None else wanted
        error = (value - wanted).abs()
        if policy.kind == "rectify":  # e⁺/γ has no bound on its slope where γ → 0
            error = error * torch.where(gamma < 0.05, gamma / 0.05, 1.0)
        assert (error / wanted.abs().clamp(min=max(1.0, strength))).max() < 1e-6


def test_range_decides_as_its_unrounded_value(isa: str):
    h = torch.tensor([333.3], dtype=torch.float32)
    around = torch.cat([torch.nextafter(h, h - 1), h, torch.nextafter(h, h + 1)])
    d = torch.zeros(3)
    model = VariogramModel("exponential", 0.1, 0.7, 250.0)
    for range_km in (float(h), float(h) + 1e-9, float(h) - 1e-9):
        policy = NegativePolicy.threshold(1.0, 1.0, range_km)
        b = native_terms(policy, model, around, d)[3]
        assert ((b > 0) == (around.double() > range_km)).all()


def test_nan_comes_out_as_nan():
    h = torch.tensor([torch.nan, 1.0])
    d = torch.tensor([0.5, torch.nan])
    model = VariogramModel("stable", 0.1, 0.7, 250.0, 0.45)
    rho, gamma, _, b, _ = native_terms(NegativePolicy.semivariogram(1.0, 1.0), model, h, d)
    assert rho.isnan().tolist() == gamma.isnan().tolist() == [True, False]
    assert b.isnan().all()
    assert native_terms(NegativePolicy.distance(1.0, 10.0), model, h, d)[3].isnan().tolist() == [True, False]
