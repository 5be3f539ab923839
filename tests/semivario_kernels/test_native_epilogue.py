"""The compiled tile kernels against float64, tile by tile, inside NaN-filled storage."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from epilogue_cases import (
    POLICIES,
    Case,
    Surrounded,
    assert_forward,
    assert_sums,
    empty_sums,
    expected_sums,
    make_case,
    make_side,
    places,
    run_forward,
    side_gradient,
    tiles,
)
from native_isa import BUILDS, RUNNABLE, SKIP, haversine_km, make_epilogue, select

from semivario_kernels import VariogramModel
from semivario_kernels.backends import native_epilogue
from semivario_kernels.backends.native_epilogue import NativeEpilogue
from semivario_kernels.geometry import EARTH_RADIUS_KM, great_circle_km, unit_vectors

pytestmark = SKIP

SHAPES = [(1, 1), (7, 63), (65, 7), (63, 65), (130, 1003), (9, 2500)]
MODELS = [
    VariogramModel(kind, 0.1, 0.7, 2500.0, 0.45, metric)
    for kind in ("stable", "exponential", "gaussian", "spherical", "matern32")
    for metric in ("arc", "chord")
] + [
    VariogramModel(("stable", "spherical"), 0.0, (0.3, 0.4), (90.0, 4000.0), (0.6, 1.0)),
    VariogramModel("stable", 0.0, 0.0, 250.0, 0.45),  # flat at 0
]


@pytest.fixture(params=BUILDS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    select(request.param, monkeypatch)
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", POLICIES)
def test_forward(kind: str, shape: tuple[int, int], isa: str):
    case = make_case(*shape, POLICIES[kind])
    assert_forward(case, run_forward(case, columns=1100))


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
    make_epilogue(case.prepared).forward(slice(0, 65), slice(0, 130), logits, case.vu, extra, None)
    with_sums = run_forward(case)
    assert logits.equal(with_sums.logits)
    assert extra.equal(with_sums.extra)


def test_rows_without_a_live_entry_sum_to_nothing(isa: str):
    case = make_case(3, 40, POLICIES["semivariogram"])
    dot, statistics = torch.full((3, 40), -torch.inf), empty_sums(3)
    make_epilogue(case.prepared).forward(slice(0, 3), slice(0, 40), dot, case.vu, None, statistics)
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
    statistics, epilogue = Surrounded(empty_sums(m)), make_epilogue(case.prepared)
    for i, j in tiles(n, m, 100, 300):
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
    epilogue = make_epilogue(case.prepared)
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
    haversine_km(p, q, out.view)
    assert out.is_surrounded()
    expected = great_circle_km(p.double(), q.double())
    assert ((out.view.double() - expected).abs() <= (1e-6 * expected).clamp(min=1e-3)).all()
    assert expected.max() > EARTH_RADIUS_KM or shape == (1, 1)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("shape", [(1, 1), (40, 700)], ids=str)
def test_haversine_in_float64(shape: tuple[int, int], isa: str, monkeypatch: pytest.MonkeyPatch):
    select(isa, monkeypatch)
    p, q = (unit_vectors(places(n, seed)) for n, seed in zip(shape, (1, 2), strict=True))
    q[1:4] = p[:1]  # no distance, half a turn, and some micrometres
    q[2:3] *= -1
    q[3:4] = torch.nn.functional.normalize(q[3:4] + torch.tensor([1e-12, 0.0, 0.0]))
    out = Surrounded(torch.full(shape, torch.nan, dtype=torch.float64))
    haversine_km(p, q, out.view)
    assert out.is_surrounded()
    near, far = (
        np.sqrt(sum(np.square(a + sign * b) for a, b in zip(*coordinates(p, q), strict=True)))
        for sign in (-1, 1)
    )
    expected = 2 * np.longdouble("6371.0088") * np.arctan2(near, far)
    np.testing.assert_allclose(out.view.numpy(), expected.astype(float), rtol=1e-15, atol=1e-19)


def coordinates(p: torch.Tensor, q: torch.Tensor):
    wide = (side.numpy().astype(np.longdouble) for side in (p[:, None], q[None]))
    return tuple(np.moveaxis(side, 2, 0) for side in wide)


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


def test_unknown_instruction_set_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEMIVARIO_ISA", "sse9")
    with pytest.raises(ValueError, match=r"SEMIVARIO_ISA: wanted one of .*baseline.*got 'sse9'"):
        NativeEpilogue(make_case(2, 3, POLICIES["none"]).prepared)


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
