import re
from functools import partial

import numpy as np
import pytest
import rank_jobs
import torch
from gloo_ranks import DEAD_SECONDS, run_on_ranks
from sharded_cases import Case, run_case, whole
from test_policy import POLICIES

TWO = {
    f"{policy} {scheme}{' symmetric' * symmetric}": Case(
        (4, 9) if symmetric else (5, 8),
        (8, 5) if symmetric else (21, 9),
        "gallery" if symmetric else "queries",
        scheme,
        policy,
        symmetric,
    )
    for policy in POLICIES
    for scheme, symmetric in (("gather", False), ("ring", False), ("ring", True))
}
SIZES = {
    "uneven": ((3, 9, 2, 6), (37, 14, 19, 21), "queries"),
    "gallery smaller": ((13, 9, 12, 16), (7, 1, 4, 5), "gallery"),
    "empty shards": ((3, 0, 9, 0), (0, 14, 9, 0), "queries"),
    "one rank has the gallery": ((13, 9, 0, 16), (0, 11, 0, 0), "gallery"),
    "one rank has the queries": ((0, 0, 7, 0), (9, 11, 5, 13), "queries"),
}
FOUR = {
    f"{name} {scheme}": Case(*sizes, scheme) for name, sizes in SIZES.items() for scheme in ("gather", "ring")
}
FOUR |= {
    f"symmetric {policy} {scheme}": Case(
        (3, 0, 9, 2), (5, 2, 7, 0), "gallery", scheme, policy, symmetric=True
    )
    for policy, scheme in (("rectify", "gather"), ("rectify", "ring"), ("penalty", "ring"))
}
FOUR |= {
    f"{reduction} {scheme}": Case(*SIZES["uneven"], scheme, reduction=reduction)
    for reduction in ("sum", "none")
    for scheme in ("gather", "ring")
}
FOUR["symmetric none"] = Case((3, 0, 9, 2), (5, 2, 7, 0), "gallery", "ring", symmetric=True, reduction="none")
FOUR |= {
    f"default targets {scheme}": Case((5, 0, 9, 2), (8, 4, 9, 11), "queries", scheme, extras=False)
    for scheme in ("gather", "ring")
}
FOUR |= {
    f"float32 {backend} {scheme}": Case(
        *SIZES["uneven"], scheme, "explained", dtype=torch.float32, backend=backend
    )
    for backend in ("native", "tiled")
    for scheme in ("gather", "ring")
}
FOUR |= {
    f"bfloat16 {sizes}": Case(*SIZES[sizes], "ring", "explained", dtype=torch.bfloat16)
    for sizes in ("uneven", "gallery smaller")
}
ONE = {
    "one rank": Case((9,), (30,), "queries"),
    "one rank symmetric": Case((9,), (9,), "gallery", "ring", symmetric=True),
    "one rank float32": Case((9,), (30,), "queries", "ring", "explained", dtype=torch.float32),
}
WORLDS = {1: ONE, 2: TWO, 4: FOUR}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


BEST = {
    f"{travels} {scheme}": ((3, 9, 0, 6), gallery, scheme)
    for travels, gallery in (("queries", (307, 0, 219, 411)), ("gallery", (7, 0, 4, 9)))
    for scheme in ("gather", "ring")
}
MEASURED = {
    "matheron": {},
    "dowd": {"estimator": "dowd"},
    "sampled": {"max_pairs": 300_000, "seed": 2},
    "short lags": {"max_lag_km": 500.0},
    "float64": {"dtype": torch.float64},
}
REFUSED = {
    "latitude": r"gallery_latlon|query_latlon: wanted finite",
    "permutation": "targets: wanted a permutation of 0 … 7",
    "dimensions": r"group: wanted the same dtypes, .*; those of ranks \[1\] are not rank 0's",
    "options": "group: wanted the same dtypes",
    "weights": "row_weights: wanted at least one weight above 0 on one of the ranks",
}
PEAK_ROWS, PEAK_DIMS = 1024, 512


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the ranks of groups of two and of four found, job by job."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(rank_jobs.StoppedError):
        rank_jobs.measure(None, folder / "one.npz", 5)
    one = run_on_ranks(
        1,
        {name: (run_case, (case,)) for name, case in ONE.items()} | {"compiled": (rank_jobs.compiled, ())},
        tmp_path_factory.mktemp("one"),
    )
    jobs = {name: (run_case, (case,)) for name, case in TWO.items()}
    jobs |= {f"refused {what}": (rank_jobs.refused, (what,)) for what in REFUSED}
    jobs["stopped"] = (rank_jobs.measure_together, (folder / "two.npz", 4))
    jobs["peak"] = (rank_jobs.peak_bytes, (PEAK_ROWS, PEAK_DIMS))
    two = run_on_ranks(2, jobs, tmp_path_factory.mktemp("two"))
    jobs = {name: (run_case, (case,)) for name, case in FOUR.items()}
    jobs |= {f"best {name}": (rank_jobs.find_best, case) for name, case in BEST.items()}
    jobs |= {
        f"measured {name}": (partial(rank_jobs.measure_together, **options), ())
        for name, options in MEASURED.items()
    }
    jobs["resumed"] = (rank_jobs.measure_together, (folder / "one.npz",))
    jobs["peak"] = (rank_jobs.peak_bytes, (PEAK_ROWS, PEAK_DIMS))
    four = run_on_ranks(4, jobs, tmp_path_factory.mktemp("four"), last=(rank_jobs.lose_a_rank, ()))
    return {1: one, 2: two, 4: four, "folder": folder}


CASES = [(world, name) for world, cases in WORLDS.items() for name in cases]


def found_by(ranks, name):
    for rank in ranks:
        if isinstance(rank[name], Exception):
            raise rank[name]
    return [rank[name] for rank in ranks]


@pytest.mark.parametrize(("world", "name"), CASES)
def test_losses_and_gradients_are_those_of_one_process(ranks, world, name):
    case = WORLDS[world][name]
    found = found_by(ranks[world], name)
    for rank in found:
        assert (rank["travels"], rank["scheme"]) == (case.travels, case.scheme)
    # one process in the same dtype where rounding decides, else the oracle
    wanted = whole(case, "reference" if case.dtype == torch.float64 else case.backend or "native")
    for rank, loss in zip(found, wanted["losses"], strict=True):
        torch.testing.assert_close(rank["loss"].double(), loss, rtol=TOLERANCE[case.dtype], atol=1e-15)
    got = [torch.cat([rank["gradients"][k] for rank in found]) for k in (0, 1)]
    got.append(sum(rank["gradients"][2] for rank in found))
    for gradient, want in zip(got, wanted["gradients"], strict=True):
        assert gradient.dtype == want.dtype
        error = (gradient.double() - want.double()).abs().max()
        assert error <= TOLERANCE[case.dtype] * want.double().abs().max()


@pytest.mark.parametrize(("world", "name"), CASES)
def test_ranks_send_what_the_plan_says(ranks, world, name):
    for rank in ranks[world]:
        assert rank[name]["sent"] == rank[name]["planned"]


def test_a_group_causes_no_graph_break(ranks):
    (found,) = found_by(ranks[1], "compiled")
    eager, compiled = found
    for got, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", BEST)
def test_best_entries_are_those_of_one_process(ranks, name):
    queries, gallery, _ = BEST[name]
    x, y = (rank_jobs.features(sum(n), seed) for seed, n in enumerate((queries, gallery)))
    wanted = torch.sort(x @ y.T, dim=1, descending=True, stable=True)
    found = found_by(ranks[4], f"best {name}")
    assert torch.cat([rank[0] for rank in found]).equal(wanted.values[:, : rank_jobs.K])
    assert torch.cat([rank[1] for rank in found]).equal(wanted.indices[:, : rank_jobs.K])
    for _, _, sent, planned, travels in found:
        assert (sent, travels) == (planned, name.split()[0])


def assert_same(one, other, rtol=0.0):
    for name in ("counts", "lag_km", "gamma", "std", "stderr", "fraction"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=0)
    assert (one.duplicates, one.seed) == (other.duplicates, other.seed)


@pytest.mark.parametrize("name", MEASURED)
def test_semivariograms_are_those_of_one_process(ranks, name):
    whole, blocks = rank_jobs.measure(None, **MEASURED[name])
    found = found_by(ranks[4], f"measured {name}")
    for measured, _ in found:
        assert_same(measured, whole, rtol=1e-13 if name == "float64" else 0.0)
    walked = [number for _, own in found for number in own]
    assert sorted(walked) == sorted(blocks)
    assert max(len(own) for _, own in found) < len(blocks) / 2


def test_another_number_of_ranks_goes_on(ranks):
    whole, blocks = rank_jobs.measure(None)
    for measured, _ in (four := found_by(ranks[4], "resumed")):
        assert_same(measured, whole)
    assert 0 < sum(len(own) for _, own in four) < len(blocks)
    assert all(isinstance(rank["stopped"], rank_jobs.StoppedError) for rank in ranks[2])
    measured, walked = rank_jobs.measure(None, ranks["folder"] / "two.npz")
    assert_same(measured, whole)
    assert 0 < len(walked) < len(blocks)
    assert not list(ranks["folder"].iterdir())


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_of_one_rank_is_refused_on_all(ranks, what):
    first, second = (rank[f"refused {what}"] for rank in ranks[2])
    assert isinstance(first, ValueError)
    assert isinstance(second, ValueError)
    assert re.match(REFUSED[what], str(second))
    assert re.match(REFUSED[what], str(first)) or "another rank refused its arguments" in str(first)


def test_memory_falls_with_the_number_of_ranks(ranks):
    for world in (2, 4):
        block = PEAK_ROWS // world * PEAK_DIMS * 4
        for peak in found_by(ranks[world], "peak"):
            # the block at work and the next one; gradients of blocks: one made, one sent, one received, one
            # at home; ∂x, and a block's share of it; the tiles
            assert 4 * block < peak < 9 * block


def test_the_others_end_when_a_rank_dies(ranks):
    assert "last" not in ranks[4][1]
    for rank in (0, 2, 3):
        assert isinstance(ranks[4][rank]["last"], RuntimeError)
        assert ranks[4][rank]["last seconds"] < DEAD_SECONDS + 10
