import pytest
import torch
from ranks import run_on_ranks
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
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return {
        world: run_on_ranks(
            world,
            {name: (run_case, (case,)) for name, case in cases.items()},
            tmp_path_factory.mktemp("ranks"),
        )
        for world, cases in ((2, TWO), (4, FOUR))
    }


CASES = [(2, name) for name in TWO] + [(4, name) for name in FOUR]


@pytest.mark.parametrize(("world", "name"), CASES)
def test_losses_and_gradients_are_those_of_one_process(ranks, world, name):
    case = (TWO if world == 2 else FOUR)[name]
    found = [rank[name] for rank in ranks[world]]
    for rank in found:
        if isinstance(rank, Exception):
            raise rank
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
