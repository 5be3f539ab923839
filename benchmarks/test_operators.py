"""The operators beside the loss under pytest-benchmark, each with the peer that it is checked against."""

import pytest

from benchmarks.operator_cases import OPERATORS
from benchmarks.semivariogram.cases import AUTHORS, GSTOOLS, Case
from benchmarks.semivariogram.contenders import our_run, rival_run
from benchmarks.semivariogram.field import make_field

pytest.importorskip("pytest_benchmark")
CASES = [Case(rival, "all pairs", rival, 500, 32) for rival in (GSTOOLS, AUTHORS)]


@pytest.mark.parametrize("whose", ["rivals", "ours"])
@pytest.mark.parametrize("make", OPERATORS, ids=lambda make: make.__name__)
def test_operator(benchmark, make, whose) -> None:
    with make(128, 4096) as operator:
        benchmark.group = operator.name
        oracle = next(iter(operator.rivals.values()))
        run = next(iter(getattr(operator, whose).values()))
        assert operator.error(benchmark(run), oracle()) <= operator.allowed


@pytest.mark.parametrize("make", [rival_run, our_run])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_semivariogram(benchmark, case, make) -> None:
    benchmark.group = f"semivariogram, bins of {case.name}"
    run = make(case, make_field(case.n, case.e, case.places))
    bins, _ = benchmark(run)
    assert bins.counts[bins.counts >= 0].sum() > 0.9 * case.n * (case.n - 1) / 2
