"""The operators on a GPU: needs torch, numpy and pytest only, and is skipped where there is none."""

import pytest
import torch
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    available_backends,
    binned_semivariance,
    even_edges_km,
    pairwise_haversine,
    semivariogram_info_nce,
    topk_gallery,
)
from semivario_kernels.geometry import unit_vectors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where test_tile_driver.py replays the comparison

MODEL = VariogramModel("stable", 0.05, 0.8, 300.0, 0.5)
POLICIES = [
    NegativePolicy.none(),
    NegativePolicy.semivariogram(3.0, 5.0, 0.1),
    NegativePolicy.explained(3.0, 5.0, 0.1),
    NegativePolicy.threshold(3.0, 5.0, 200.0, 0.1),
    NegativePolicy.rectify(0.4, 3.0, 5.0, 0.1),
    NegativePolicy.penalty(200.0),
    NegativePolicy.distance(-0.7, 150.0),
    NegativePolicy.distance_linear(3.0, 150.0),
]
BACKENDS = available_backends("cuda") if torch.cuda.is_available() else ["reference"]
LEAVES = ("x", "y", "logit_scale")


def problem(n, m, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(n + m, seed)])
    return {
        "x": torch.randn(n, 67, generator=g, dtype=torch.float64).to(dtype),
        "y": torch.randn(m, 67, generator=g, dtype=torch.float64).to(dtype),
        "query_latlon": places[torch.randperm(len(places), generator=g)[:n]],
        "gallery_latlon": places[torch.randperm(len(places), generator=g)[:m]],
        "logit_scale": torch.tensor(12.0, dtype=torch.float64),
        "query_embeddings": (torch.randn(n, 45, generator=g, dtype=torch.float64) + 0.5).to(dtype),
        "gallery_embeddings": (torch.randn(m, 45, generator=g, dtype=torch.float64) + 0.5).to(dtype),
    }


def upstream_of(loss):
    return torch.randn(loss.shape, generator=torch.Generator().manual_seed(8)).to(loss)


def gradients_of(p, **options):
    leaves = [p[name].clone().requires_grad_() for name in LEAVES]
    loss = semivariogram_info_nce(**{**p, **dict(zip(LEAVES, leaves, strict=True))}, **options)
    return loss.detach(), torch.autograd.grad(loss, leaves, upstream_of(loss))


def sum_of_slopes(p, **options):
    """Σ|w_i·∂loss_i/∂s| by differences; with its signs the sum, ∂loss/∂s, may be close to 0."""
    above, below = (
        semivariogram_info_nce(
            **{**p, "logit_scale": p["logit_scale"] + step},
            **{**options, "reduction": "none"},
            backend="reference",
        )
        for step in (1e-4, -1e-4)
    )
    slopes = ((above - below) / 2e-4).abs()
    if options["reduction"] == "mean":
        return slopes.mean() * upstream_of(slopes.mean()).abs()
    return (slopes * upstream_of(slopes).abs()).sum()


def assert_equals_float64(p, on_gpu, **options):
    """|ours − float64| ≤ |reference in the same dtype − float64| + tolerance · largest entry."""
    there = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    exact = {k: t.double() for k, t in p.items()}
    results = [
        gradients_of({k: t.to(DEVICE) for k, t in p.items()}, **on_gpu, **there),
        gradients_of(p, backend="reference", **options),
        gradients_of(exact, backend="reference", **options),
    ]
    tolerance = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}[p["x"].dtype]
    ours, reference, wanted = ([loss, *rest] for loss, rest in results)
    largest = [t.abs().max() for t in wanted[:-1]] + [sum_of_slopes(exact, **options)]
    for got, plain, right, entry in zip(ours, reference, wanted, largest, strict=True):
        error, allowed = ((t.cpu().double() - right).abs().max() for t in (got, plain))
        assert error <= allowed + tolerance * entry


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_float64_reference(backend, policy, dtype, symmetric, reduction):
    p = problem(333, 333 if symmetric else 1501, dtype)
    options = {"label_smoothing": 0.1, "symmetric": symmetric, "reduction": reduction}
    assert_equals_float64(p, {"backend": backend}, variogram=MODEL, policy=policy, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_give_nan_and_are_named_on_request(backend, monkeypatch):
    p = {k: t.cuda() for k, t in problem(5, 9, torch.float32).items()}
    p["gallery_latlon"][3, 0] = 95.0
    options = {"variogram": MODEL, "policy": NegativePolicy.explained(), "backend": backend}
    assert semivariogram_info_nce(**p, **options).isnan()
    monkeypatch.setenv("SEMIVARIO_CHECK", "1")
    with pytest.raises(ValueError, match=r"gallery_latlon: .*in row 3"):
        semivariogram_info_nce(**p, **options)


WAYS = [(name, None) for name in BACKENDS if name != "reference"] + [
    (name, 64) for name in BACKENDS if name == "triton"
]  # with workspace_mb; little of it leads to the fused kernels


@pytest.mark.sanitizer
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_small_ragged_shapes(backend, workspace_mb, symmetric):
    p = problem(37, 37 if symmetric else 301, torch.bfloat16)
    exclude = (torch.arange(37)[:, None] + torch.tensor([1, 9])) % len(p["y"])
    options = {"variogram": MODEL, "policy": NegativePolicy.rectify(0.4, 3.0, 5.0), "exclude": exclude}
    options |= {"symmetric": symmetric, "reduction": "none"}
    assert_equals_float64(p, {"backend": backend, "workspace_mb": workspace_mb}, **options)


def large_problem(n, m, dtype=torch.bfloat16, dims=(512, 768)):
    """On the GPU, made there; every query has its place among the gallery's first."""
    torch.manual_seed(5)
    x, y = (torch.randn(k, dims[0], device="cuda").to(dtype) for k in (n, m))
    v, u = (torch.randn(k, dims[1], device="cuda").to(dtype) for k in (n, m))
    latlon = torch.rand(m, 2, device="cuda", dtype=torch.float64) * torch.tensor([160.0, 360.0]).cuda()
    latlon -= torch.tensor([80.0, 180.0]).cuda()
    return {
        "x": x,
        "y": y,
        "query_latlon": latlon[:n],
        "gallery_latlon": latlon,
        "logit_scale": torch.tensor(14.0, device="cuda"),
        "query_embeddings": v,
        "gallery_embeddings": u,
    }


EXPLAINED = {"variogram": MODEL, "policy": NegativePolicy.explained(3.0, 5.0)}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
def test_fused_equals_the_float64_reference(dtype, policy, reduction):
    p = problem(333, 1501, dtype)
    exclude = (torch.arange(333)[:, None] + torch.tensor([1, 400])) % 1501
    options = {"variogram": MODEL, "policy": policy, "label_smoothing": 0.1, "reduction": reduction}
    assert_equals_float64(p, {"backend": "triton", "workspace_mb": 16}, exclude=exclude, **options)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_two_runs_are_equal_bit_for_bit(backend, workspace_mb, dtype, symmetric):
    p = large_problem(700, 700 if symmetric else 5001, dtype)
    runs = [
        gradients_of(p, backend=backend, workspace_mb=workspace_mb, symmetric=symmetric, **EXPLAINED)
        for _ in range(2)
    ]
    (first, first_gradients), (second, second_gradients) = runs
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients, strict=True))


def step(p, **options):
    """Loss and gradients by backward(), which a graph can capture."""
    for name in LEAVES:
        p[name].grad = None
    loss = semivariogram_info_nce(**p, **options)
    loss.backward()
    return loss.detach(), *(p[name].grad for name in LEAVES)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_a_step_does_not_wait_for_the_gpu(backend, workspace_mb, symmetric):
    p = large_problem(300, 300 if symmetric else 3001)
    for name in LEAVES:
        p[name].requires_grad_()
    exclude = torch.arange(1, 301, device="cuda")[:, None] % len(p["y"])
    options = {"backend": backend, "workspace_mb": workspace_mb, "symmetric": symmetric, **EXPLAINED}
    step(p, exclude=exclude, **options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(p, exclude=exclude, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_a_graph_captures_a_step(backend, workspace_mb):
    p = large_problem(300, 3001)
    for name in LEAVES:
        p[name].requires_grad_()
    options = {"backend": backend, "workspace_mb": workspace_mb, **EXPLAINED}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(p, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(p, **options)
    with torch.no_grad():
        p["x"].copy_(torch.randn_like(p["x"]))
    graph.replay()
    replayed = [t.clone() for t in captured]
    for ours, wanted in zip(replayed, step(p, **options), strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_compiled_step(backend, workspace_mb):
    p = large_problem(300, 3001)
    for name in LEAVES:
        p[name].requires_grad_()
    options = {"backend": backend, "workspace_mb": workspace_mb, **EXPLAINED}
    wanted = [t.clone() for t in step(p, **options)]
    torch.compiler.reset()
    compiled = torch.compile(lambda: semivariogram_info_nce(**p, **options), fullgraph=True)
    for name in LEAVES:
        p[name].grad = None
    loss = compiled()
    loss.backward()
    torch.testing.assert_close(loss.detach(), wanted[0], rtol=1e-6, atol=0)
    for name, gradient in zip(LEAVES, wanted[1:], strict=True):
        torch.testing.assert_close(p[name].grad, gradient, rtol=1e-2, atol=1e-6)


def peak_mib(function):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = function()
    torch.cuda.synchronize()
    results = sum(t.numel() * t.element_size() for t in kept)
    return (torch.cuda.max_memory_allocated() - before - results) / 2**20


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
@pytest.mark.parametrize("workspace_mb", [None, 128, 64])
def test_memory_stays_within_the_workspace(workspace_mb):
    """Beyond inputs and gradients; vectors of M and the library's workspace are 40 MiB at most."""
    n, m = 4096, 131072
    p = large_problem(n, m)
    options = {"backend": "triton", "workspace_mb": workspace_mb, **EXPLAINED}

    def run():
        loss, gradients = gradients_of(p, **options)
        return loss, *gradients

    run()
    copies = 2 * m * 512 / 2**20 + n * 512 * 2 / 2**20  # the gradient times the upstream one, out of place
    accumulator = 0 if workspace_mb == 64 else 4 * m * 512 / 2**20
    assert peak_mib(run) <= (workspace_mb or 1024) + accumulator + copies + 40


@pytest.mark.parametrize("m", [131072, 1048576])
@pytest.mark.parametrize(("backend", "workspace_mb"), WAYS)
def test_galleries_up_to_a_million(backend, workspace_mb, m):
    """Rows of the loss against float32 torch on a few rows; offsets pass 2³¹ at 4,096 × 1,048,576."""
    p = large_problem(4096, m)
    loss, (dx, dy, _) = gradients_of(p, backend=backend, workspace_mb=workspace_mb, **EXPLAINED)
    assert loss.isfinite()
    assert dx.isfinite().all()
    assert dy.isfinite().all()
    assert dy[-1].abs().max() > 0
    rows = torch.tensor([0, 2047, 4095], device="cuda")
    few = {**p, "x": p["x"][rows], "query_latlon": p["query_latlon"][rows]}
    few["query_embeddings"] = p["query_embeddings"][rows]
    options = {"targets": rows, "reduction": "none", **EXPLAINED}
    exact = semivariogram_info_nce(**few, **options, backend="reference")
    losses = semivariogram_info_nce(**p, **EXPLAINED, reduction="none", backend=backend)
    torch.testing.assert_close(losses[rows], exact, rtol=2e-3, atol=0)


@pytest.mark.skipif("triton" not in BACKENDS, reason="no Triton")
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
def test_inline_instructions_equal_their_plain_twins(policy):
    """lg2.approx and the pair-by-pair mapping against tl.log2 over whole blocks."""
    from pair_kernel import evaluated

    n = 2**18
    a, b = (random_latlon(n, seed) for seed in (1, 2))
    b[: n // 2] = a[: n // 2] + 10 ** (-5 * torch.rand(n // 2, 2, dtype=torch.float64))
    b[:, 0].clamp_(-90, 90)
    p, q = (unit_vectors(t).float().cuda() for t in (a, b))
    d = 2 * torch.rand(n, device="cuda")
    for model in (MODEL, VariogramModel(("stable", "matern32"), 0.1, (0.3, 0.4), (90.0, 900.0), (0.3, 1.0))):
        fast, plain = (evaluated(policy, model, p, q, d, fast=fast) for fast in (True, False))
        # which sums of products are fused is the compiler's choice in each of the two
        torch.testing.assert_close(fast[:2], plain[:2], rtol=1e-6, atol=1e-3)
        assert (fast[2:] - plain[2:]).abs().max() <= 4e-6 * (1 + policy.hard + policy.false)


@pytest.mark.parametrize("backend", BACKENDS)
def test_matrices_rankings_and_bins(backend):
    latlon = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(700, 2)])
    v = torch.randn(len(latlon), 31, generator=torch.Generator().manual_seed(1))
    wanted = pairwise_haversine(latlon, backend="reference")
    got = pairwise_haversine(latlon.cuda(), backend=backend).cpu()
    assert ((got - wanted).abs() <= torch.clamp(1e-6 * wanted, min=1e-3)).all()
    values, indices = topk_gallery(v[:50].cuda(), v.cuda(), 7, backend=backend)
    torch.testing.assert_close(
        values.cpu(), topk_gallery(v[:50], v, 7, backend="reference")[0], rtol=1e-5, atol=1e-5
    )
    assert (indices[:, 0].cpu() == torch.arange(50)).float().mean() > 0.9
    edges = even_edges_km(20100.0, 30)
    on_gpu = binned_semivariance(v.cuda(), latlon.cuda(), edges_km=edges, backend=backend)
    on_cpu = binned_semivariance(v, latlon, edges_km=edges, backend="reference")
    assert (on_gpu.counts == on_cpu.counts).all()
    torch.testing.assert_close(
        torch.from_numpy(on_gpu.gamma), torch.from_numpy(on_cpu.gamma), rtol=1e-6, atol=0, equal_nan=True
    )
