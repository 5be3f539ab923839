"""The loss under pytest-benchmark: `python -m pytest benchmarks`, to compare two states of the code."""

import pytest

from benchmarks.cases import NAIVE, Case
from benchmarks.contenders import makers
from benchmarks.problem import make_problem
from semivario_kernels import available_backends

pytest.importorskip("pytest_benchmark")
CASES = [
    Case("forward", 512, 2048, backward=False),
    Case("mean", 512, 2048),
    Case("none", 512, 2048, reduction="none"),
    Case("symmetric", 1024, 1024, symmetric=True),
]


@pytest.mark.parametrize(
    "contender", [NAIVE, *(name for name in available_backends() if name != "reference")]
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss(benchmark, case, contender) -> None:
    benchmark.group = f"loss, {case.name}"
    run = makers(case, make_problem(case.n, case.m, case.d, case.e))[contender]()
    assert benchmark(run)
