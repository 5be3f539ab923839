"""Losses' vectors and products for the tile kernels, and what they give in float64."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from native_isa import make_epilogue
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import NegativePolicy, VariogramModel
from semivario_kernels.backends.tile_driver import Side
from semivario_kernels.geometry import great_circle_km, unit_vectors
from semivario_kernels.policy import PairTerms

SCALE = 14.3
MODEL = VariogramModel("stable", 0.1, 1.3, 2500.0, 0.45)  # γ passes 1, the d of a pair without an image
STRENGTHS = {"hard": 2.5, "false": 4.0}
POLICIES = {
    "none": NegativePolicy.none(),
    "semivariogram": NegativePolicy.semivariogram(**STRENGTHS, tolerance=0.03),
    "explained": NegativePolicy.explained(**STRENGTHS, tolerance=0.03, far=1.5),
    "threshold": NegativePolicy.threshold(**STRENGTHS, range_km=3333.3),
    "rectify": NegativePolicy.rectify(0.7, **STRENGTHS),
    "penalty": NegativePolicy.penalty(7000.1),
    "distance": NegativePolicy.distance(5.0, 1200.0),
    "distance_linear": NegativePolicy.distance_linear(2.0, 1200.0),
}


@dataclass
class Case:
    """A loss's vectors and products in float32, and what they give in float64."""

    prepared: SimpleNamespace
    dot: torch.Tensor
    vu: torch.Tensor | None
    logits: torch.Tensor
    factor: torch.Tensor
    soft: torch.Tensor
    positive: torch.Tensor

    @property
    def extra(self) -> torch.Tensor | None:
        kind = self.prepared.problem.policy.kind
        return {"penalty": self.factor, "rectify": self.soft}.get(kind)


def places(n: int, seed: int) -> torch.Tensor:
    special = torch.tensor(SPECIAL_PLACES, dtype=torch.float64)
    return torch.cat([special, random_latlon(n, seed)])[torch.randperm(n, generator=seeded(seed))]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_case(
    n: int,
    m: int,
    policy: NegativePolicy,
    model: VariogramModel = MODEL,
    *,
    features: bool = False,
    dead: bool = True,
    seed: int = 5,
) -> Case:
    generator = seeded(seed)
    targets = torch.randint(0, m, (n,), generator=generator)
    reads_embeddings = policy.reads_dissimilarity and not features
    prepared = SimpleNamespace(
        problem=SimpleNamespace(policy=policy, variogram=model if policy.reads_dissimilarity else None),
        n=n,
        m=m,
        dtype=torch.float32,
        scale=torch.tensor(SCALE),
        p=unit_vectors(places(n, seed)).float() if policy.reads_positions else None,
        q=unit_vectors(places(m, seed + 1)).float() if policy.reads_positions else None,
        inverse_y=0.5 + torch.rand(m, generator=generator),
        inverse_v=(torch.rand(n, generator=generator) > 0.1).float() if reads_embeddings else None,
        inverse_u=None,
        targets=targets,
    )
    if reads_embeddings:
        inverse_u = 0.5 + torch.rand(m, generator=generator)
        prepared.inverse_u = torch.where(torch.rand(m, generator=generator) > 0.1, inverse_u, 0.0)
    dot = 0.4 * torch.randn(n, m, generator=generator)
    vu = 2 * torch.rand(n, m, generator=generator) - 0.7 if reads_embeddings else None
    rows, columns = torch.arange(n)[:, None], torch.arange(m)
    positive = columns == targets[:, None]
    if dead:
        dot[(torch.rand(n, m, generator=generator) < 0.1) & ~positive] = -torch.inf
        if m > 600:
            dot[0, :512] = -torch.inf  # a chunk without a live entry
            dot[rows[:, 0], targets] = 0.3

    cos = dot.double() * prepared.inverse_y.double()
    terms, blank, blank_b = PairTerms(), torch.zeros_like(positive), 0.0
    if policy.reads_positions:
        p, q = prepared.p.double(), prepared.q.double()
        h_km = great_circle_km(p, q)
    if policy.reads_dissimilarity:
        d = 1 - cos.masked_fill(cos == -torch.inf, 0.0)
        if vu is not None:
            d = (1 - vu.double() * prepared.inverse_u.double()).clamp(0, 2)
            blank = (prepared.inverse_v == 0)[:, None] | (prepared.inverse_u == 0)
        rho = model.torch_correlation(h_km)
        gamma = model.nugget + model.total_psill * (1 - rho)
        terms = policy.torch_terms(h_km, d, gamma, rho, model.sill)
        blank_b = policy.far * (1 - rho)  # what needs no image
    elif policy.reads_positions:
        terms = policy.torch_terms(h_km)
    a, b, f = (
        torch.full_like(cos, neutral)
        if term is None
        else torch.where(positive, neutral, torch.where(blank, of_blank, term))
        for term, neutral, of_blank in zip(terms, (1.0, 0.0, 0.0), (1.0, blank_b, 0.0), strict=True)
    )
    alive = cos > -torch.inf
    logits = torch.where(alive, a * SCALE * cos + b, -torch.inf)
    return Case(prepared, dot, vu, logits, a, torch.where(alive, f, 0.0), positive)


def tiles(n: int, m: int, rows: int, columns: int) -> list[tuple[slice, slice]]:
    return [
        (slice(i, min(i + rows, n)), slice(j, min(j + columns, m)))
        for i in range(0, n, rows)
        for j in range(0, m, columns)
    ]


class Surrounded:
    """A copy of a matrix inside NaN-filled storage."""

    def __init__(self, matrix: torch.Tensor) -> None:
        n, m = matrix.shape
        self.storage = torch.full((n + 3, m + 21), torch.nan, dtype=matrix.dtype)
        self.view = self.storage[1 : n + 1, 5 : m + 5]
        self.view.copy_(matrix)

    def is_surrounded(self) -> bool:
        n, m = self.view.shape
        outside = self.storage.clone()
        outside[1 : n + 1, 5 : m + 5] = torch.nan
        return bool(outside.isnan().all())


def empty_sums(n: int) -> torch.Tensor:
    sums = torch.zeros(6, n, dtype=torch.float64)
    sums[0] = -torch.inf
    return sums


@dataclass
class Forward:
    logits: torch.Tensor
    extra: torch.Tensor | None
    statistics: torch.Tensor


def run_forward(case: Case, rows: int = 64, columns: int = 700) -> Forward:
    n, m = case.dot.shape
    epilogue = make_epilogue(case.prepared)
    logits, extra, statistics = Surrounded(case.dot), None, Surrounded(empty_sums(n))
    vu = None if case.vu is None else Surrounded(case.vu)
    if case.extra is not None:
        extra = Surrounded(torch.full((n, m), torch.nan))
    for i, j in tiles(n, m, rows, columns):
        epilogue.forward(
            i,
            j,
            logits.view[i, j],
            None if vu is None else vu.view[i, j],
            None if extra is None else extra.view[i, j],
            statistics.view,
        )
    for written in (logits, statistics, vu, extra):
        assert written is None or written.is_surrounded()
    return Forward(logits.view, None if extra is None else extra.view, statistics.view)


def expected_sums(case: Case) -> torch.Tensor:
    live = case.logits.masked_fill(case.logits == -torch.inf, 0.0)
    top = case.logits.amax(dim=1)
    return torch.stack(
        [
            top,
            torch.exp(case.logits - top[:, None]).sum(dim=1),
            live.sum(dim=1),
            case.soft.sum(dim=1),
            (case.soft * live).sum(dim=1),
            live.masked_fill(~case.positive, 0).sum(dim=1),
        ]
    )


def assert_sums(got: torch.Tensor, expected: torch.Tensor, length: int) -> None:
    """Log-sum-exp, and the sums of `length` values within float32's rounding of each."""
    assert not got.isnan().any()
    log_sum_exp, wanted = got[0] + got[1].log(), expected[0] + expected[1].log()
    torch.testing.assert_close(log_sum_exp, wanted, rtol=5e-7, atol=5e-6)
    assert (got[2:] - expected[2:]).abs().max() < 3e-5 * length**0.5
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got[5], expected[5], rtol=1e-6, atol=1e-6)


def assert_forward(case: Case, got: Forward) -> None:
    assert (got.logits == -torch.inf).equal(case.logits == -torch.inf)
    torch.testing.assert_close(got.logits.double(), case.logits, rtol=2e-6, atol=1e-5)
    if case.extra is not None:
        alive = case.logits > -torch.inf
        torch.testing.assert_close(got.extra.double()[alive], case.extra[alive], rtol=2e-6, atol=2e-6)
    if case.prepared.problem.policy.kind == "rectify":
        assert (got.extra[case.logits == -torch.inf] == 0).all()
    assert_sums(got.statistics, expected_sums(case), case.dot.shape[1])


def make_side(length: int, log_sum_exp: torch.Tensor, seed: int) -> Side:
    generator = seeded(seed)
    return Side(
        log_sum_exp.float(),
        torch.rand(length, generator=generator),
        0.5 + 0.5 * torch.rand(length, generator=generator),
        0.01 * torch.rand(length, generator=generator),
    )


def side_gradient(side: Side, logits: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """w·(softmax − T) per row, float64."""
    lse, weight, hard, smooth = (
        t.double()[:, None] for t in (side.log_sum_exp, side.weight, side.hard, side.smooth)
    )
    return weight * (torch.exp(logits - lse) - hard * mass - smooth)
