import itertools

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.contenders import loss_run
from benchmarks.measure import largest_error
from benchmarks.naive import haversine_km, naive_info_nce
from benchmarks.problem import VARIOGRAM, make_problem
from semivario_kernels import NegativePolicy, pairwise_haversine, semivariogram_info_nce

POLICIES = [
    NegativePolicy.none(),
    NegativePolicy.semivariogram(hard=20, false=20, tolerance=0.02),
    NegativePolicy.explained(hard=2, false=6, tolerance=0.02),
]


@pytest.mark.parametrize(
    ("policy", "reduction", "symmetric"),
    list(itertools.product(POLICIES, ("mean", "none"), (False, True))),
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_naive_is_the_reference_to_float32_accuracy(policy, reduction, symmetric) -> None:
    case = Case("", 60, 60 if symmetric else 90, 33, 47, policy, reduction=reduction, symmetric=symmetric)
    problem = make_problem(case.n, case.m, case.d, case.e, towns=6)
    naive = loss_run(naive_info_nce, case, problem)()
    reference = loss_run(semivariogram_info_nce, case, problem, backend="reference")()
    assert [part.shape for part in naive] == [part.shape for part in reference]
    assert largest_error(naive, reference, case.n) < 1e-5


def test_the_policies_change_the_loss() -> None:
    problem = make_problem(60, 90, 33, 47, towns=6)
    losses = [float(loss_run(naive_info_nce, Case("", 60, 90, policy=p), problem)()[0]) for p in POLICIES]
    assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 0.005


def test_haversine_in_float32_errs_by_metres_where_it_is_well_conditioned() -> None:
    problem = make_problem(60, 90, 3, 5)
    km = haversine_km(problem.query_latlon, problem.gallery_latlon).double()
    exact = pairwise_haversine(problem.query_latlon, problem.gallery_latlon, backend="reference")
    assert (km - exact).abs()[exact < 15_000].max() < 0.02
    assert (km - exact).abs().max() < 2


def test_a_policy_without_a_naive_form_is_refused() -> None:
    problem = make_problem(4, 5, 3, 5)
    with pytest.raises(ValueError, match=r"policy.*penalty"):
        loss_run(naive_info_nce, Case("", 4, 5, policy=NegativePolicy.penalty(25)), problem)()


def test_problem_has_close_positives_and_towns_that_look_alike() -> None:
    problem = make_problem(500, 2000, 64, 256)
    h_km = pairwise_haversine(problem.query_latlon, problem.gallery_latlon)
    assert h_km.diagonal().max() < 1
    cosine = torch.nn.functional.normalize(problem.v) @ torch.nn.functional.normalize(problem.u).T
    assert cosine[h_km < 20].mean() == pytest.approx(2 / 3, abs=0.05)
    assert cosine[h_km > 200].mean() == pytest.approx(1 / 3, abs=0.05)
    assert pytest.approx(2 / 3, abs=0.05) == VARIOGRAM.sill
    assert VARIOGRAM(20.0) == pytest.approx(1 / 3, abs=0.07)
    again = make_problem(500, 2000, 64, 256)
    assert torch.equal(problem.u, again.u)
    assert torch.equal(problem.query_latlon, again.query_latlon)
    with pytest.raises(ValueError, match="n: wanted at most m = 3"):
        make_problem(4, 3, 2, 2)
