"""The loss by Triton, both ways: in its interpreter where there is no GPU."""

import sys
from contextlib import contextmanager

import pytest
import torch
from places import SPECIAL_PLACES, random_latlon
from test_loss import MODEL, problem
from test_operator import within_nan
from test_policy import POLICIES

pytest.importorskip("triton", reason="Triton is not installed")

from pair_kernel import evaluated

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    available_backends,
    cosine_dissimilarity,
    explain_backend,
    semivariogram_info_nce,
)
from semivario_kernels.backends import tile_driver
from semivario_kernels.backends.tile_driver import TileDriver
from semivario_kernels.backends.triton import configurations, fused_driver, strip_epilogue
from semivario_kernels.backends.triton.configurations import FusedBlocks, StripBlocks
from semivario_kernels.geometry import EARTH_RADIUS_KM, unit_vectors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# a GPU's lg2.approx and ex2.approx move a logit by up to 4e-6·hard
TOLERANCE = 3e-6 if DEVICE == "cpu" else 3e-5
LEAVES = ("x", "y", "logit_scale")
WAYS = {"strips": 1000, "passes": 1000, "fused": 1}  # workspace_mb that leads there
N, M, D, E = 21, 50, 21, 19  # larger than the blocks below and no multiple of them
LONG = torch.randn(
    N + M, 53, generator=torch.Generator().manual_seed(2)
)  # the fused gradient takes it in two chunks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several strips, tiles, splits and blocks in a small problem; uninitialised memory is NaN."""
    strips = StripBlocks(
        rows=8, columns=16, steps=2, merge=16, merge_slots=1, project_rows=32, project_columns=16
    )
    monkeypatch.setattr(strip_epilogue, "STRIP_BLOCKS", strips)
    for table in configurations.FUSED_BLOCKS.values():
        for key in table:
            monkeypatch.setitem(table, key, FusedBlocks(16, 32, 16, 4, 2, 16, 2))
    for name in ("ROW_BLOCK", "GPU_ROW_BLOCK"):
        monkeypatch.setattr(tile_driver, name, 13)
    for name in ("COLUMN_TILE", "GPU_COLUMN_TILE"):
        monkeypatch.setattr(tile_driver, name, 35)
    monkeypatch.setattr(fused_driver, "PROGRAMS_PER_PROCESSOR", 2)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN
    yield
    torch.use_deterministic_algorithms(before)


def wide_problem(symmetric=False, dtype=torch.float32):
    """As `test_loss.problem`, with longer features and embeddings of `dtype`."""
    n, m = (N, N) if symmetric else (N, M)
    p = {k: t.detach() for k, t in problem(n=n, m=m).items()}
    generator = torch.Generator().manual_seed(1)
    for name, rows, dims in (
        ("x", n, D),
        ("y", m, D),
        ("query_embeddings", n, E),
        ("gallery_embeddings", m, E),
    ):
        p[name] = (torch.randn(rows, dims, generator=generator) + 0.3 * ("emb" in name)).to(dtype)
    p["query_embeddings"][1], p["gallery_embeddings"][2] = 0, 0
    return p


def exclusions(n, m):
    """Two excluded pairs a row, one of them twice, and padding."""
    rows = torch.arange(n)[:, None]
    exclude = torch.cat([(rows + 3) % m, (rows + 5) % m, (rows + 3) % m, torch.full((n, 1), -1)], dim=1)
    exclude[::3, 1] = -1
    return exclude


@contextmanager
def taking(way):
    """Go a way that small sizes would not lead to; yields the row blocks whose gradient is made at once."""
    strips, strip = [], TileDriver._strip

    def noted(driver, rows, *rest):
        strips.append((rows.start, rows.stop))
        strip(driver, rows, *rest)

    fits = property(lambda driver: way == "strips" and not driver.problem.symmetric)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileDriver, "fits_strips", fits)  # the fused driver has its own
        patch.setattr(TileDriver, "_strip", noted)
        yield strips


def losses_and_gradients(p, **options):
    leaves = [p[name].detach().requires_grad_() for name in LEAVES]
    loss = semivariogram_info_nce(**{**p, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(8)).to(loss)
    return loss.detach(), *torch.autograd.grad(loss, leaves, upstream)


def assert_equals_reference(p, tolerance, *, way, **options):
    exact = {k: t.double() if t.is_floating_point() else t for k, t in p.items()}
    wanted = losses_and_gradients(exact, backend="reference", **options)
    laid = {k: within_nan(t, 2, 2) if t.ndim == 2 else t for k, t in p.items()}
    laid = {k: t.to(DEVICE) for k, t in laid.items()}
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    with taking(way) as strips:
        got = losses_and_gradients(laid, backend="triton", workspace_mb=WAYS[way], **moved)
    # `none` learns what its rows weigh in the backward pass, a symmetric loss what its columns sum to
    at_once = way == "strips" and options.get("reduction") != "none" and not options.get("symmetric")
    assert strips == ([(0, 11), (11, 21)] if at_once else [])
    for ours, exactly in zip(got, wanted, strict=True):
        error = (ours.cpu().double() - exactly).abs().max()
        assert error <= tolerance * exactly.abs().max()


# what the columns add depends on a and f only
@pytest.mark.parametrize(
    ("way", "name", "symmetric"),
    [(way, name, False) for way in WAYS for name in POLICIES]
    + [(way, name, True) for way in ("passes", "fused") for name in ("none", "rectify", "penalty")],
)
def test_every_policy(way, name, symmetric):
    """With exclusions and label smoothing; pairs without an image, duplicates, antipodes are among them."""
    p = wide_problem(symmetric)
    n, m = len(p["x"]), len(p["y"])
    assert_equals_reference(
        p,
        TOLERANCE,
        way=way,
        variogram=MODEL,
        policy=POLICIES[name][0],
        exclude=exclusions(n, m),
        label_smoothing=0.1,
        symmetric=symmetric,
        reduction="none" if symmetric else "mean",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"reduction": "sum", "row_weights": torch.linspace(0, 1, N)},
        {"normalize": False, "logit_scale": torch.tensor(0.4)},
        {"dissimilarity": "features", "query_embeddings": None, "gallery_embeddings": None},
        {"targets": torch.arange(N).flip(0) + 27},
        {"policy": NegativePolicy.none(), "reduction": "none", "x": LONG[:N], "y": LONG[N:]},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("way", ["strips", "fused"])
def test_every_option(way, options):
    options = dict(options)
    p = {k: options.pop(k, t) for k, t in wide_problem().items()}
    p = {k: t for k, t in p.items() if t is not None}
    assert_equals_reference(
        p,
        TOLERANCE,
        way=way,
        **{"variogram": MODEL, "policy": NegativePolicy.rectify(0.4, 3.0, 5.0), **options},
    )


@pytest.mark.parametrize(
    ("way", "symmetric"),
    [("strips", False), ("passes", False), ("passes", True), ("fused", False), ("fused", True)],
)
def test_float16(way, symmetric, monkeypatch):
    """Factors, the dissimilarity's product and A in float16, as on a GPU."""
    monkeypatch.setattr(tile_driver, "product_dtype", lambda matrix: matrix.dtype)
    p = wide_problem(symmetric, torch.float16)
    assert_equals_reference(
        p, 4e-3, way=way, variogram=MODEL, policy=NegativePolicy.explained(2, 4), symmetric=symmetric
    )


@pytest.mark.parametrize("way", WAYS)
def test_only_the_gradients_asked_for(way):
    p = {k: t.to(DEVICE) for k, t in wide_problem().items()}
    options = {"policy": NegativePolicy.none(), "backend": "triton", "workspace_mb": WAYS[way]}
    with taking(way) as strips:
        _, *wanted = losses_and_gradients(p, **options)
        assert bool(strips) == (way == "strips")
    upstream = torch.randn((), generator=torch.Generator().manual_seed(8)).to(DEVICE)
    for name, gradient in zip(LEAVES, wanted, strict=True):
        leaf = p[name].detach().requires_grad_()
        with taking(way):
            loss = semivariogram_info_nce(**{**p, name: leaf}, **options)
        assert torch.equal(torch.autograd.grad(loss, leaf, upstream)[0], gradient)


def test_float16_without_an_upstream_gradient():
    """All of a masked loss's gradients are 0, whatever its numbers are multiplied by against underflow."""
    p, options = {k: t.half() for k, t in wide_problem().items() if k in LEAVES}, {"workspace_mb": 1}
    leaves = [p[name].requires_grad_() for name in ("x", "y")]
    losses = semivariogram_info_nce(
        *leaves, None, None, 4.0, policy=NegativePolicy.none(), backend="triton", reduction="none", **options
    )
    for gradient in torch.autograd.grad(losses, leaves, torch.zeros_like(losses)):
        assert (gradient == 0).all()


@pytest.mark.parametrize("way", ["passes", "fused"])
def test_bad_values_give_nan(way, monkeypatch):
    monkeypatch.setattr("semivario_kernels.problem.is_checked", lambda tensor: False)
    p = {k: t.to(DEVICE) for k, t in wide_problem().items()}
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(2, 4), "reduction": "none"}
    options |= {"backend": "triton", "workspace_mb": WAYS[way]}
    p["query_latlon"] = p["query_latlon"].clone()
    p["query_latlon"][4, 0] = 95.0
    targets = torch.arange(N, device=DEVICE)
    targets[7], targets[8] = M, -3
    losses = semivariogram_info_nce(**p, **options, targets=targets)
    assert losses.isnan().nonzero().flatten().tolist() == [4, 7, 8]


@pytest.mark.parametrize(
    "model",
    [
        VariogramModel(kind, 0.1, 0.7, 2500.0, 0.45, metric)
        for kind in ("stable", "exponential", "gaussian", "spherical", "matern32")
        for metric in ("arc", "chord")
    ]
    + [
        VariogramModel(("stable", "spherical"), 0.0, (0.3, 0.4), (90.0, 4000.0), (0.6, 1.0)),
        VariogramModel(("gaussian",) * 3, 0.1, (0.1, 0.2, 0.3), (90.0, 4000.0, 9000.0)),
        VariogramModel("stable", 0.0, 0.0, 250.0, 0.45),  # flat at 0
    ],
    ids=lambda model: model.signature,
)
def test_pair_arithmetic_value_by_value(model):
    """Distances within a metre or 1e-6, terms within 4e-6 of hard + false, at poles and antipodes too."""
    n = 1021
    special = torch.tensor(SPECIAL_PLACES, dtype=torch.float64)
    a, b = (torch.cat([special, random_latlon(n - len(special), seed)]) for seed in (1, 2))
    b[: len(special)] = special.flip(0)
    b[200:400] = a[200:400] + 1e-5 * torch.rand(200, 2, dtype=torch.float64)
    b[400:600, 0], b[400:600, 1] = -a[400:600, 0], a[400:600, 1] + 180 - 1e-4
    b[:, 0].clamp_(-90, 90)
    p, q = (unit_vectors(t).float() for t in (a, b))
    d = 2 * torch.rand(n, generator=torch.Generator().manual_seed(3))
    near, far = ((p.double() + sign * q.double()).norm(dim=1) for sign in (-1, 1))
    h = 2 * EARTH_RADIUS_KM * torch.atan2(near, far)
    for name, (policy, _) in POLICIES.items():
        got = evaluated(policy, model, p.to(DEVICE), q.to(DEVICE), d.to(DEVICE), fast=False).cpu().double()
        assert ((got[0] - h).abs() <= (1e-6 * h).clamp(min=1e-3)).all()
        torch.testing.assert_close(got[1], EARTH_RADIUS_KM * near, rtol=1e-6, atol=1e-3)
        rho = gamma = None
        if policy.reads_dissimilarity:
            rho = model.torch_correlation(got[0])
            gamma = model.nugget + model.total_psill * (1 - rho)
        terms = policy.torch_terms(got[0], d.double(), gamma, rho, model.sill)
        wanted = [
            torch.full_like(h, neutral) if term is None else term
            for term, neutral in zip(terms, (1.0, 0.0, 0.0), strict=True)
        ]
        scale = policy.hard + policy.false + 1
        for ours, exactly in zip(got[2:5], wanted, strict=True):
            assert (ours - exactly).abs().max() <= 4e-6 * scale, name
        assert (got[5] - (0.4 * wanted[0] + wanted[1])).abs().max() <= 4e-6 * scale, name


def test_nan_positions_stay_nan():
    p = torch.full((3, 3), torch.nan, device=DEVICE)
    q = torch.tensor([[1.0, 0.0, 0.0]] * 3, device=DEVICE)
    for name, (policy, _) in POLICIES.items():
        got = evaluated(policy, MODEL, p, q, torch.rand(3, device=DEVICE), fast=False)
        assert got[:2].isnan().all()
        assert got[5].isnan().all() == (name != "none")


def test_refits_and_other_strengths_compile_nothing_anew():
    from semivario_kernels.backends.triton.pair_options import PairOptions, pair_parameters

    first = pair_parameters(NegativePolicy.explained(2, 4), MODEL, torch.device(DEVICE))
    second = pair_parameters(
        NegativePolicy.explained(3, 1), VariogramModel("stable", 0.2, 0.5, 9.0, 1.0), torch.device(DEVICE)
    )
    assert first.shape == second.shape
    options = PairOptions("explained", ("stable",), source="embeddings")
    assert options.constexprs() == PairOptions("explained", ("stable",), source="embeddings").constexprs()


def test_the_range_is_rounded_down():
    """As in float32 0.1 > 0.1, h > range must decide with the unrounded range."""
    from semivario_kernels.backends.triton.pair_options import pair_parameters

    parameters = pair_parameters(NegativePolicy.penalty(700.1), MODEL, torch.device("cpu"))
    assert parameters[5].double() <= 700.1 < torch.nextafter(parameters[5], torch.tensor(1e9)).double()


@pytest.mark.skipif(DEVICE == "cuda", reason="the GPU's own backend is Triton")
def test_the_cpu_takes_triton_only_by_name(monkeypatch):
    monkeypatch.delenv("SEMIVARIO_BACKEND", raising=False)
    lines = explain_backend(torch.zeros(1)).splitlines()
    assert not lines[0].startswith("triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    wanted = "^backend: 'triton' cannot serve cpu: runs on GPUs, not on cpu$"
    with pytest.raises(ValueError, match=wanted):
        cosine_dissimilarity(torch.eye(2), backend="triton")


def test_without_triton_the_others_serve(monkeypatch):
    monkeypatch.delenv("SEMIVARIO_BACKEND", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" not in available_backends("cuda")
    assert "triton: Triton is not installed" in explain_backend(torch.zeros(1)).splitlines()
