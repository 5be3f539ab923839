import math

import pytest
import torch
from scalar_oracle import terms

from semivario_kernels import NegativePolicy

NUGGET, PSILL = 0.05, 0.8
POLICIES = {
    "none": (NegativePolicy.none(), {}),
    "semivariogram": (
        NegativePolicy.semivariogram(3.0, 5.0, 0.1),
        {"hard": 3.0, "false": 5.0, "tolerance": 0.1},
    ),
    "explained": (
        NegativePolicy.explained(3.0, 5.0, 0.1, far=2.0),
        {"hard": 3.0, "false": 5.0, "tolerance": 0.1, "far": 2.0},
    ),
    "threshold": (
        NegativePolicy.threshold(3.0, 5.0, 200.0, 0.1),
        {"hard": 3.0, "false": 5.0, "range_km": 200.0, "tolerance": 0.1},
    ),
    "rectify": (
        NegativePolicy.rectify(0.4, 3.0, 5.0, 0.1),
        {"mass": 0.4, "hard": 3.0, "false": 5.0, "tolerance": 0.1},
    ),
    "penalty": (NegativePolicy.penalty(200.0), {"range_km": 200.0}),
    "distance": (NegativePolicy.distance(-0.7, 150.0), {"strength": -0.7, "scale_km": 150.0}),
    "distance_linear": (NegativePolicy.distance_linear(3.0, 150.0), {"weight": 3.0, "scale_km": 150.0}),
}


@pytest.mark.parametrize("name", POLICIES)
def test_terms_equal_the_scalar_definition(name):
    policy, parameters = POLICIES[name]
    h = torch.tensor([0.0, 1.0, 199.999, 200.0, 200.001, 5000.0], dtype=torch.float64)
    d = torch.linspace(0, 2, 9, dtype=torch.float64)
    h, d = (t.reshape(-1) for t in torch.meshgrid(h, d, indexing="ij"))
    rho = torch.exp(-((h / 300) ** 0.5))
    gamma = NUGGET + PSILL * (1 - rho)
    ours = policy.torch_terms(h, d, gamma, rho, NUGGET + PSILL)
    wanted = torch.tensor(
        [
            terms((name, parameters), *pair, NUGGET, PSILL, r)
            for *pair, r in zip(h.tolist(), d.tolist(), rho.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    for term, column, neutral in zip(ours, wanted.T, (1.0, 0.0, 0.0), strict=True):
        got = torch.full_like(h, neutral) if term is None else term
        torch.testing.assert_close(got, column, rtol=1e-12, atol=1e-14)


def test_explained_excuses_a_near_twin_where_nothing_can_surprise():
    zero, one = torch.zeros(1), torch.ones(1)  # h = 0, γ = 0: the surprise of an identical image is 0
    surprise = NegativePolicy.semivariogram(0.0, 6.0).torch_terms(zero, zero, zero, one, 0.8)
    explained = NegativePolicy.explained(0.0, 6.0).torch_terms(zero, zero, zero, one, 0.8)
    assert surprise.log_weight.item() == 0
    assert explained.log_weight.item() == -6


def test_a_flat_zero_variogram_gives_no_nan():
    zero, one = torch.zeros(1), torch.ones(1)
    for policy in (NegativePolicy.explained(1, 1), NegativePolicy.rectify(1, 1, 1)):
        for term in policy.torch_terms(zero, zero, zero, one, 0.0):
            assert term is None or torch.isfinite(term).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NegativePolicy("closest"), "policy: wanted a kind of none, .* got 'closest'"),
        (lambda: NegativePolicy.semivariogram(-1, 0), r"hard: .*\[0, inf\], got -1"),
        (lambda: NegativePolicy.explained(0, math.nan), "false: .*got nan"),
        (lambda: NegativePolicy.explained(0, 1, -0.1), "tolerance: .*got -0.1"),
        (lambda: NegativePolicy.rectify(-1, 0, 0), "mass: .*got -1"),
        (lambda: NegativePolicy.threshold(1, 1, 0), r"range_km: .*\(0, inf\], got 0"),
        (lambda: NegativePolicy.penalty(-3), "range_km: .*got -3"),
        (lambda: NegativePolicy.distance(-1, 10), r"strength: .*\(-1, inf\], got -1"),
        (lambda: NegativePolicy.distance(1, 0), "scale_km: .*got 0"),
        (lambda: NegativePolicy.distance_linear(math.inf, 1), "weight: .*got inf"),
        (lambda: NegativePolicy.explained("much"), "hard: wanted a number, got 'much'"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
