"""The GPU's kernels, run on the CPU: what test_native_epilogue.py does not ask of the CPU's.

The source is csrc/cuda/ as nvcc compiles it; a stand-in executes its grids, blocks, barriers and shuffles.
"""

import subprocess
import warnings

import numpy as np
import pytest
import torch
from cuda_host_build import STAND_IN, compiler
from epilogue_cases import (
    POLICIES,
    Surrounded,
    empty_sums,
    make_case,
    make_side,
    run_forward,
    seeded,
)
from native_isa import CUDA_ON_HOST, SKIP_CUDA_ON_HOST, make_epilogue, select
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    binned_semivariance,
    even_edges_km,
    log_edges_km,
    semivariogram_info_nce,
)
from semivario_kernels.backends import cuda_epilogue, cuda_ranking, native, tiled_matrices
from semivario_kernels.backends.binned_cuda import CudaBinning
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.binned_sums import BinnedRequest

pytestmark = SKIP_CUDA_ON_HOST


@pytest.fixture(autouse=True)
def kernels_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    select(CUDA_ON_HOST, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("aligned", [False, True])
def test_products_in_a_shorter_dtype(dtype: torch.dtype, aligned: bool):
    case = make_case(20, 1026, POLICIES["explained"])
    vu = case.vu.to(dtype)
    whole, statistics, logits = (slice(0, 20), slice(0, 1026)), empty_sums(20), case.dot.clone()
    vu = torch.nn.functional.pad(vu, (0, 6))[:, :1026] if aligned else Surrounded(vu).view
    make_epilogue(case.prepared).forward(*whole, logits, vu, None, statistics)
    case.vu = vu.float()
    expected = run_forward(case, rows=20, columns=1026)
    assert logits.equal(expected.logits)
    assert statistics.equal(expected.statistics)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["explained", "rectify", "penalty"])
@pytest.mark.parametrize("columns", [77, 1032])
def test_gradient_in_another_buffer(kind: str, dtype: torch.dtype, columns: int):
    case = make_case(20, columns, POLICIES[kind])
    rows, whole = make_side(20, case.logits.logsumexp(dim=1), 1), (slice(0, 20), slice(0, columns))
    rows.weight *= 1e5  # beyond float16
    epilogue, logits = make_epilogue(case.prepared), case.logits.float()
    extra = None if case.extra is None else torch.where(logits > -torch.inf, case.extra, 0).float()
    out, kept = Surrounded(torch.full_like(logits, torch.nan, dtype=dtype)), logits.clone()
    epilogue.gradient(*whole, logits, extra, rows, None, out.view)
    assert out.is_surrounded()
    assert logits.equal(kept)
    epilogue.gradient(*whole, logits, extra, rows, None, logits)
    assert logits.abs().max() > 66000
    if dtype == torch.float16:
        logits = logits.clamp(-65504, 65504)
    assert out.view.equal(logits.to(dtype))


def everything(kind: str) -> list[torch.Tensor]:
    """What all kernels give for one case."""
    case = make_case(200, 2100, POLICIES[kind])
    got, whole = run_forward(case, rows=200, columns=2100), (slice(0, 200), slice(0, 2100))
    epilogue, columns, gradient = make_epilogue(case.prepared), empty_sums(2100), got.logits.clone()
    epilogue.column_statistics(*whole, got.logits, got.extra if kind == "rectify" else None, columns)
    sides = make_side(200, case.logits.logsumexp(dim=1), 3), make_side(2100, torch.zeros(2100), 4)
    epilogue.gradient(*whole, gradient, got.extra, *sides, gradient)
    x, y = torch.randn(3, 5, generator=seeded(1)), torch.randn(5000, 5, generator=seeded(2))
    return [got.logits, got.statistics, columns, gradient, *cuda_ranking.ranked(x, y, 100)]


@pytest.mark.parametrize("kind", ["none", "rectify"])
def test_results_do_not_depend_on_the_order_of_threads(kind: str, monkeypatch: pytest.MonkeyPatch):
    first = everything(kind)
    monkeypatch.setenv("CUDA_ON_HOST_REVERSED", "1")
    assert all(a.equal(b) for a, b in zip(everything(kind), first, strict=True))


RACE = """
#include <cuda_runtime.h>
#include <cstdio>
void neighbour(int* out) {
    __shared__ int shared[64];
    shared[threadIdx.x] = static_cast<int>(threadIdx.x) + 1;
    BARRIER;
    out[threadIdx.x] = shared[(threadIdx.x + SHIFT) % 64];
}
int main() {
    int out[64];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(64);
    try {
        cudaLaunchKernelEx(&config, neighbour, out);
    } catch (const std::exception& error) {
        std::puts(error.what());
        return 0;
    }
    int wrong = 0;
    for (int t = 0; t < 64; ++t) wrong += out[t] != (t + SHIFT) % 64 + 1;
    std::printf("%d wrong", wrong);
}
"""


@pytest.mark.parametrize(
    ("barrier", "shift", "reversed_order", "said"),
    [
        ("__syncthreads()", 1, False, "0 wrong"),
        ("(void)0", 1, False, "63 wrong"),  # a later thread's value is not there yet
        ("(void)0", 63, True, "63 wrong"),  # nor is an earlier one's, in the other order
        (
            "if (threadIdx.x < 32) __syncthreads()",
            1,
            False,
            "the threads of block 0 wait at different barriers",
        ),
    ],
)
def test_stand_in_shows_missing_barriers(barrier: str, shift: int, reversed_order: bool, said: str, tmp_path):
    (tmp_path / "race.cpp").write_text(RACE.replace("BARRIER", barrier).replace("SHIFT", str(shift)))
    build = [compiler(), "-std=c++17", "-O0", f"-I{STAND_IN}", "race.cpp", "-o", "race"]
    subprocess.run(build, cwd=tmp_path, check=True)
    environment = {"CUDA_ON_HOST_REVERSED": "1"} if reversed_order else {}
    done = subprocess.run([tmp_path / "race"], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == said


@pytest.mark.parametrize("k", [1, 7, 1000, 1024])
@pytest.mark.parametrize("shape", [(3, 1024), (5, 1025), (9, 40001)], ids=str)
def test_ranking(shape: tuple[int, int], k: int):
    n, m = shape
    x, y = torch.randn(n, 17, generator=seeded(1)), torch.randn(m, 17, generator=seeded(2))
    values, indices = cuda_ranking.ranked(x, y, k)
    expected, places = tiled_matrices.topk_gallery(x, y, k)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    assert (indices == places).float().mean() > 0.999  # products of equal value to the last bit may swap
    assert values.equal((x @ y.T).gather(1, indices)) or torch.allclose(values, (x @ y.T).gather(1, indices))


def test_ranking_gives_equal_values_by_index():
    x = torch.eye(2)
    y = torch.randint(-3, 3, (20000, 2), generator=seeded(3)).float()
    y[::7] *= 0.0  # and −0
    values, indices = cuda_ranking.ranked(x, y, 900)
    scores = x @ y.T
    ordered, order = torch.sort(scores, dim=1, descending=True, stable=True)
    assert values.equal(ordered[:, :900])
    assert indices.equal(order[:, :900])


def test_ranking_of_rising_scores_and_nan():
    y = torch.arange(9000.0)[:, None]  # every entry beats all before it
    y[4321] = torch.nan
    values, indices = cuda_ranking.ranked(torch.ones(2, 1), y, 1024)
    assert values[0, 0].isnan()
    assert indices[1].tolist() == [4321, *range(8999, 8999 - 1023, -1)]
    assert values[1, 1:].equal(torch.arange(8999.0, 8999 - 1023, -1))


@pytest.mark.parametrize(
    "options", [{"reduction": "mean"}, {"reduction": "none", "symmetric": True}], ids=str
)
@pytest.mark.parametrize("kind", ["none", "explained", "rectify", "penalty", "distance"])
def test_whole_loss(kind: str, options: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "_epilogue", cuda_epilogue.CudaEpilogue)
    n, m = (97, 97) if "symmetric" in options else (97, 1301)
    generator = seeded(7)
    latlon = torch.rand(m, 2, generator=generator, dtype=torch.float64) * 20
    u = torch.randn(m, 12, generator=generator) + 0.3
    u[5] = 0
    inputs = [
        torch.randn(n, 19, generator=generator),
        torch.randn(m, 19, generator=generator),
        torch.tensor(9.0),
    ]
    exclude = torch.randint(n, m + 1, (n, 3), generator=generator) if n < m else None
    if exclude is not None:
        exclude[exclude == m] = -1

    def run(dtype: torch.dtype, backend: str) -> list[torch.Tensor]:
        x, y, scale = (t.to(dtype).requires_grad_() for t in inputs)
        loss = semivariogram_info_nce(
            x,
            y,
            latlon[:n],
            latlon,
            scale,
            variogram=VariogramModel("stable", 0.05, 0.8, 300.0, 0.5),
            policy=POLICIES[kind] if kind != "distance" else NegativePolicy.distance(-0.7, 150.0),
            query_embeddings=u[:n].to(dtype),
            gallery_embeddings=u.to(dtype),
            exclude=exclude,
            label_smoothing=0.1,
            backend=backend,
            **options,
        )
        upstream = torch.randn(loss.shape, generator=seeded(8), dtype=torch.float64).to(dtype)
        return [loss, *torch.autograd.grad(loss, (x, y, scale), upstream)]

    for got, expected in zip(run(torch.float32, "native"), run(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(
            got.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max().detach())
        )


@pytest.fixture
def towns() -> tuple[torch.Tensor, torch.Tensor]:
    """Clustered places with duplicates, and embeddings."""
    centers = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(40, 1)])
    near = (
        centers[torch.arange(700) % len(centers)] + torch.randn(700, 2, generator=seeded(2)).double() * 0.05
    )
    latlon = torch.cat([near, random_latlon(400, 3), centers])
    latlon[:, 0].clamp_(-90, 90)
    return torch.randn(len(latlon), 9, generator=seeded(4)), latlon


EDGES = {
    "log": log_edges_km(0.01, 20100.0, 40),
    "fine": even_edges_km(20100.0, 3142),  # more bins than shared memory holds
    "near": log_edges_km(0.1, 3000.0, 14),  # far tiles are left out
}


def bin_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "binning", lambda sets, request: CudaBinning(request, sets[0].device))


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("estimator", ["matheron", "cressie-hawkins", "dowd"])
def test_binned_semivariance(towns, edges, estimator: str, monkeypatch: pytest.MonkeyPatch):
    options = {"edges_km": edges, "estimator": estimator}
    with warnings.catch_warnings(action="ignore"):  # few pairs in a bin
        expected = binned_semivariance(towns[0].double(), towns[1], backend="reference", **options)
        bin_on_the_gpu(monkeypatch)
        got = binned_semivariance(*towns, backend="native", **options)
    assert (got.counts == expected.counts).all()
    assert got.duplicates == expected.duplicates > 0
    np.testing.assert_allclose(got.lag_km, expected.lag_km, rtol=1e-6, atol=2.5e-3)
    # of few pairs the median may lie half a cell off
    np.testing.assert_allclose(got.gamma, expected.gamma, rtol=0, atol=5e-4 if estimator == "dowd" else 2e-6)
    np.testing.assert_allclose(got.std, expected.std, rtol=1e-4, atol=1e-3)


def test_binned_semivariance_of_two_sets(towns, monkeypatch: pytest.MonkeyPatch):
    v, latlon = towns
    options = {"other_latlon": latlon[300:], "edges_km": EDGES["log"]}
    expected = binned_semivariance(v.double(), latlon, other=v[300:].double(), backend="reference", **options)
    bin_on_the_gpu(monkeypatch)
    got = binned_semivariance(v, latlon, other=v[300:], backend="native", **options)
    assert (got.counts == expected.counts).all()
    np.testing.assert_allclose(got.gamma, expected.gamma, rtol=0, atol=2e-6)


def test_binned_sums_do_not_depend_on_tiles_or_the_order_of_threads(towns, monkeypatch: pytest.MonkeyPatch):
    v, latlon = towns
    v = torch.sign(v)  # products exact in any order
    bin_on_the_gpu(monkeypatch)

    def sums() -> list[np.ndarray]:
        found = binned_semivariance(v, latlon, edges_km=EDGES["log"], backend="native")
        return [found.counts, found.lag_km, found.gamma, found.std, found.stderr]

    whole = sums()
    monkeypatch.setenv("CUDA_ON_HOST_REVERSED", "1")
    monkeypatch.setattr(CudaBinning, "row_blocks", (192,))
    monkeypatch.setattr(CudaBinning, "column_batch", 320)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(sums(), whole, strict=True))


def test_binning_goes_on_from_earlier_sums():
    request = BinnedRequest(torch.tensor([0.0, 1.0, 4.0]).double(), 2, True, 16)
    binning = CudaBinning(request, torch.device("cpu"))
    axes = torch.nn.functional.normalize(torch.randn(3, 70, generator=seeded(5)).double(), dim=0)
    side = Side(axes, torch.ones(70).double(), (torch.arange(70) // 40).int())
    dot = 2 * torch.rand(70, 70, generator=seeded(6)) - 1
    binning.add(side, side, dot, True)
    once = binning.totals()
    other = CudaBinning(request, torch.device("cpu"))
    other.start_from(once)
    other.add(side, side, dot, False)
    binning.add(side, side, dot, False)
    for name, value in binning.totals().tensors().items():
        assert value.equal(other.totals().tensors()[name])
    assert once.sums[..., 0].sum() == once.histogram.sum() == 70 * 69 / 2
    assert binning.totals().sums[..., 0].sum() == 70 * 69 / 2 + 70 * 70
    expected = (1 - dot).triu(diagonal=1).double().clamp(min=0)
    d = expected[torch.ones(70, 70).triu(diagonal=1) > 0]
    assert abs(float(once.sums[..., 2].sum() - d.sum())) < 1e-4
    assert abs(float(once.quarter_sums.sum() - d.pow(0.25).sum())) < 1e-4


def test_refuses_what_it_cannot_serve():
    case = make_case(4, 6, POLICIES["explained"])
    epilogue, whole = make_epilogue(case.prepared), (slice(0, 4), slice(0, 6))
    with pytest.raises(ValueError, match="vu: this policy wants"):
        epilogue.forward(*whole, case.dot, None, None, None)
    with pytest.raises(ValueError, match=r"dtype: wanted one of .*float32, got 'float64'"):
        epilogue.forward(*whole, case.dot, case.vu.double(), None, None)
    with pytest.raises(ValueError, match=r"dot: wanted torch.float32 of shape \(4, 6\)"):
        epilogue.forward(*whole, case.dot.T, case.vu, None, None)
