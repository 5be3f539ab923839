"""The compiled tile kernels against float64, tile by tile, inside NaN-filled storage."""

import os
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from native_isa import RUNNABLE, SKIP
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import NegativePolicy, VariogramModel
from semivario_kernels.backends import native_epilogue
from semivario_kernels.backends.native_epilogue import NativeEpilogue
from semivario_kernels.backends.tile_driver import Side
from semivario_kernels.geometry import EARTH_RADIUS_KM, great_circle_km, unit_vectors
from semivario_kernels.policy import PairTerms

pytestmark = SKIP

SCALE = 14.3
SHAPES = [(1, 1), (7, 63), (65, 7), (63, 65), (130, 1003), (9, 1025)]
MODEL = VariogramModel("stable", 0.1, 1.3, 2500.0, 0.45)  # γ passes 1, the d of a pair without an image
STRENGTHS = {"hard": 2.5, "false": 4.0}
POLICIES = {
    "none": NegativePolicy.none(),
    "semivariogram": NegativePolicy.semivariogram(**STRENGTHS, tolerance=0.03),
    "explained": NegativePolicy.explained(**STRENGTHS, tolerance=0.03),
    "threshold": NegativePolicy.threshold(**STRENGTHS, range_km=3333.3),
    "rectify": NegativePolicy.rectify(0.7, **STRENGTHS),
    "penalty": NegativePolicy.penalty(7000.1),
    "distance": NegativePolicy.distance(5.0, 1200.0),
    "distance_linear": NegativePolicy.distance_linear(2.0, 1200.0),
}
MODELS = [
    VariogramModel(kind, 0.1, 0.7, 2500.0, 0.45, metric)
    for kind in ("stable", "exponential", "gaussian", "spherical", "matern32")
    for metric in ("arc", "chord")
] + [
    VariogramModel(("stable", "spherical"), 0.0, (0.3, 0.4), (90.0, 4000.0), (0.6, 1.0)),
    VariogramModel("stable", 0.0, 0.0, 250.0, 0.45),  # flat at 0
]


@pytest.fixture(params=RUNNABLE)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEMIVARIO_ISA", request.param)
    return request.param


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
        scale=SCALE,
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
    terms, untouched = PairTerms(), positive
    if policy.reads_positions:
        p, q = prepared.p.double(), prepared.q.double()
        h_km = great_circle_km(p, q)
    if policy.reads_dissimilarity:
        d = 1 - cos.masked_fill(cos == -torch.inf, 0.0)
        if vu is not None:
            d = (1 - vu.double() * prepared.inverse_u.double()).clamp(0, 2)
            untouched = positive | (prepared.inverse_v == 0)[:, None] | (prepared.inverse_u == 0)
        rho = model.torch_correlation(h_km)
        gamma = model.nugget + model.total_psill * (1 - rho)
        terms = policy.torch_terms(h_km, d, gamma, rho, model.sill)
    elif policy.reads_positions:
        terms = policy.torch_terms(h_km)
    a, b, f = (
        torch.full_like(cos, neutral) if term is None else torch.where(untouched, neutral, term)
        for term, neutral in zip(terms, (1.0, 0.0, 0.0), strict=True)
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
    epilogue = NativeEpilogue(case.prepared)
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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", POLICIES)
def test_forward(kind: str, shape: tuple[int, int], isa: str):
    case = make_case(*shape, POLICIES[kind])
    assert_forward(case, run_forward(case))


@pytest.mark.parametrize("kind", [k for k, policy in POLICIES.items() if policy.reads_dissimilarity])
def test_forward_with_dissimilarity_of_the_features(kind: str, isa: str):
    case = make_case(65, 130, POLICIES[kind], features=True)
    assert_forward(case, run_forward(case, rows=33, columns=64))


@pytest.mark.parametrize("kind", ["semivariogram", "explained", "threshold"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.kind}-{model.metric}")
def test_forward_with_every_variogram(model: VariogramModel, kind: str, isa: str):
    case = make_case(40, 333, POLICIES[kind], model)
    assert_forward(case, run_forward(case))


def test_forward_without_sums_gives_the_same_logits(isa: str):
    case = make_case(65, 130, POLICIES["rectify"])
    extra, logits = torch.full_like(case.dot, torch.nan), case.dot.clone()
    NativeEpilogue(case.prepared).forward(slice(0, 65), slice(0, 130), logits, case.vu, extra, None)
    with_sums = run_forward(case)
    assert logits.equal(with_sums.logits)
    assert extra.equal(with_sums.extra)


def test_rows_without_a_live_entry_sum_to_nothing(isa: str):
    case = make_case(3, 40, POLICIES["semivariogram"])
    dot, statistics = torch.full((3, 40), -torch.inf), empty_sums(3)
    NativeEpilogue(case.prepared).forward(slice(0, 3), slice(0, 40), dot, case.vu, None, statistics)
    assert (dot == -torch.inf).all()
    assert (statistics[0] == -torch.inf).all()
    assert (statistics[1:5] == 0).all()


@pytest.mark.parametrize("kind", ["none", "semivariogram"])
def test_nan_reaches_the_sums_and_no_other_row(kind: str, isa: str):
    case = make_case(5, 90, POLICIES[kind], dead=False)
    case.dot[2, 17] = torch.nan
    statistics = run_forward(case).statistics
    assert statistics[1].isnan().tolist() == [False, False, True, False, False]


def test_bad_position_gives_nan(isa: str):
    case = make_case(5, 90, POLICIES["semivariogram"], dead=False)
    case.prepared.inverse_v[:] = 1
    case.prepared.p[3] = torch.nan
    assert run_forward(case).statistics[1].isnan().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["semivariogram", "rectify"])
def test_column_statistics(kind: str, shape: tuple[int, int], isa: str):
    n, m = shape
    case = make_case(n, m, POLICIES[kind])
    targets = torch.arange(n) if n <= m else torch.arange(n) % m
    case.prepared.targets = targets
    case.positive = torch.arange(m) == targets[:, None]
    if m > 1:
        case.logits[:, m // 2] = -torch.inf  # a column without a live entry
    logits, soft = Surrounded(case.logits.float()), None
    case.logits = logits.view.double()
    case.soft = torch.where(case.logits > -torch.inf, case.soft.float(), 0.0).double()
    if kind == "rectify":
        soft = Surrounded(case.soft.float())
    statistics, epilogue = Surrounded(empty_sums(m)), NativeEpilogue(case.prepared)
    for i, j in tiles(n, m, 48, 300):
        epilogue.column_statistics(
            i, j, logits.view[i, j], None if soft is None else soft.view[i, j], statistics.view
        )
    assert statistics.is_surrounded()
    got = statistics.view
    columns = Case(
        case.prepared, case.dot.T, None, case.logits.T, case.factor.T, case.soft.T, case.positive.T
    )
    expected = expected_sums(columns)
    dead = (case.logits == -torch.inf).all(dim=0)
    assert (got[0, dead] == -torch.inf).all()
    assert (got[1:5, dead] == 0).all()
    if n > m:  # several queries share a positive; the symmetric loss has none such
        got[5] = expected[5]
    assert_sums(got[:, ~dead], expected[:, ~dead], n)


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


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "penalty", "rectify"])
def test_gradient(kind: str, shape: tuple[int, int], both_sides: bool, isa: str):
    n, m = shape
    case = make_case(n, m, POLICIES[kind])
    logits = Surrounded(case.logits.float())
    read, factor, soft = logits.view.double(), case.factor.float().double(), case.soft.float().double()
    alive = read > -torch.inf
    rows = make_side(n, read.logsumexp(dim=1), 1)
    columns = make_side(m, read.logsumexp(dim=0).clamp(min=-5), 2) if both_sides else None
    mass = case.positive + soft
    g = side_gradient(rows, read, mass)
    if columns is not None:
        g = g + side_gradient(columns, read.T, mass.T).T
    expected = torch.where(alive, g * factor * case.prepared.inverse_y.double(), 0.0)

    extra = None if case.extra is None else Surrounded(torch.where(alive, case.extra, 0).float())
    epilogue = NativeEpilogue(case.prepared)
    for i, j in tiles(n, m, 50, 600):
        tile = logits.view[i, j]
        epilogue.gradient(i, j, tile, None if extra is None else extra.view[i, j], rows, columns, tile)
    assert logits.is_surrounded()
    assert (logits.view[~alive] == 0).all()
    torch.testing.assert_close(logits.view.double(), expected, rtol=2e-6, atol=1e-6)


def test_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch):
    if len(RUNNABLE) < 2:
        pytest.skip(f"this processor runs one instruction set only: {RUNNABLE[0]}")
    case = make_case(65, 700, POLICIES["rectify"])
    results = []
    for name in RUNNABLE:
        monkeypatch.setenv("SEMIVARIO_ISA", name)
        assert NativeEpilogue(case.prepared)._epilogue.isa == name
        results.append(run_forward(case))
    for other in results[1:]:
        torch.testing.assert_close(other.logits, results[0].logits, rtol=2e-6, atol=5e-6)
        torch.testing.assert_close(other.statistics, results[0].statistics, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["semivariogram", "rectify"])
def test_results_depend_neither_on_the_run_nor_on_the_threads(kind: str):
    case = make_case(130, 1003, POLICIES[kind])
    results, sides = [], make_side(130, case.logits.logsumexp(dim=1), 3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            got, columns = run_forward(case, rows=130), empty_sums(1003)
            epilogue = NativeEpilogue(case.prepared)
            whole = slice(0, 130), slice(0, 1003)
            epilogue.column_statistics(*whole, got.logits, got.extra, columns)
            gradient = got.logits.clone()
            epilogue.gradient(*whole, gradient, got.extra, sides, None, gradient)
            results.append((got.logits, got.statistics, columns, gradient))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (40, 700)], ids=str)
def test_haversine(shape: tuple[int, int], isa: str):
    p, q = (unit_vectors(places(n, seed)).float() for n, seed in zip(shape, (1, 2), strict=True))
    out = Surrounded(torch.full(shape, torch.nan))
    native_epilogue.haversine_km(p, q, out.view)
    assert out.is_surrounded()
    expected = great_circle_km(p.double(), q.double())
    assert ((out.view.double() - expected).abs() <= (1e-6 * expected).clamp(min=1e-3)).all()
    assert expected.max() > EARTH_RADIUS_KM or shape == (1, 1)


def test_refuses_what_it_cannot_serve():
    case = make_case(4, 6, POLICIES["rectify"])
    epilogue = NativeEpilogue(case.prepared)
    whole = slice(0, 4), slice(0, 6)
    with pytest.raises(ValueError, match=r"dot: wanted torch.float32 of shape \(4, 6\).*got torch.float64"):
        epilogue.forward(*whole, case.dot.double(), case.vu, None, None)
    with pytest.raises(ValueError, match=r"vu: this policy wants"):
        epilogue.forward(*whole, case.dot, None, None, None)
    sides = make_side(4, torch.zeros(4), 1)
    with pytest.raises(ValueError, match=r"extra: this policy wants"):
        epilogue.gradient(*whole, case.dot, None, sides, None, case.dot)
    case.prepared.problem.variogram = VariogramModel(("gaussian",) * 17, 0.0, (1.0,) * 17, (9.0,) * 17)
    with pytest.raises(ValueError, match="structures: wanted at most 16, got 17"):
        NativeEpilogue(case.prepared)
    case.prepared.dtype = torch.float64
    with pytest.raises(ValueError, match=r"want float32 arithmetic, got torch\.float64"):
        NativeEpilogue(case.prepared)


@pytest.mark.skipif(sys.platform != "linux", reason="only the Linux build leaves OpenMP's symbols open")
def test_import_without_an_openmp_library_says_so():
    script = (
        "import sys, importlib.util as u\n"
        "spec = u.spec_from_file_location('semivario_kernels._native', sys.argv[1])\n"
        "u.module_from_spec(spec)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run(
        [sys.executable, "-c", script, native_epilogue._native.__file__],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "ImportError" in done.stderr
    assert "undefined symbol: " in done.stderr
