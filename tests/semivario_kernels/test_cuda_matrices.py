"""Matrices, rankings and semivariograms on a GPU: large sizes, equal runs, no waiting, CUDA graphs."""

import pytest
import torch
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels import (
    available_backends,
    binned_semivariance,
    cosine_dissimilarity,
    log_edges_km,
    pairwise_haversine,
    topk_gallery,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

BACKENDS = available_backends("cuda") if torch.cuda.is_available() else []
HAS_TRITON = "triton" in BACKENDS
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="the triton backend is not there")


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


@needs_triton
@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_ragged_shapes(dtype):
    x, y = normal(37, 19, dtype=dtype), normal(1301, 19, seed=1, dtype=dtype)
    scores = x.double() @ y.double().T
    values, indices = topk_gallery(x, y, 5, backend="triton")
    torch.testing.assert_close(values.double(), scores.topk(5, dim=1).values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.double(), scores.gather(1, indices), rtol=1e-5, atol=1e-5)
    d = cosine_dissimilarity(x, y, backend="triton")
    unit_x, unit_y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (x, y))
    torch.testing.assert_close(d.double(), 1 - unit_x @ unit_y.T, rtol=0, atol=2e-6)
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(301, seed=2)]).cuda()
    h_km = pairwise_haversine(places.float(), backend="triton").double()
    wanted = pairwise_haversine(places.float().double(), backend="reference")
    assert ((h_km - wanted).abs() <= (1e-6 * wanted).clamp(min=1e-3)).all()


@pytest.mark.sanitizer
@pytest.mark.parametrize("backend", BACKENDS)
def test_semivariogram_equals_the_reference(backend):
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(700, seed=2)]).cuda()
    v = normal(len(places), 40)
    edges = log_edges_km(1.0, 20_016.0, 24)
    ours = binned_semivariance(v, places, edges_km=edges, backend=backend)
    wanted = binned_semivariance(v.double(), places, edges_km=edges, backend="reference")
    assert (ours.counts == wanted.counts).all()
    torch.testing.assert_close(
        torch.from_numpy(ours.gamma), torch.from_numpy(wanted.gamma), rtol=1e-6, atol=1e-6, equal_nan=True
    )


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m", "k"), [(4096, 131_072, 10), (3, 1_048_576, 128), (1_000, 70_001, 300)])
def test_topk_of_large_galleries(dtype, n, m, k):
    x, y = normal(n, 64, dtype=dtype), normal(m, 64, seed=1, dtype=dtype)
    values, indices = topk_gallery(x, y, k, backend="triton")
    exact = [(rows.double() @ y.double().T).topk(k, dim=1) for rows in torch.split(x, 512)]
    wanted = torch.cat([part.values for part in exact])
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-4)
    own = (x.double()[:, None] * y.double()[indices]).sum(dim=2)
    torch.testing.assert_close(own, values.double(), rtol=1e-5, atol=1e-4)
    assert (indices.sort(dim=1).values.diff(dim=1) > 0).all()


@needs_triton
def test_equal_values_come_in_the_order_of_their_index():
    x, y = (
        normal(300, 3).round(),
        normal(200_003, 3, seed=1).round(),
    )  # exact in float32, with thousands of ties
    scores, order = torch.sort(x @ y.T, dim=1, descending=True, stable=True)
    for k in (1, 10, 128, 200):
        values, indices = topk_gallery(x, y, k, backend="triton")
        assert torch.equal(indices, order[:, :k])
        assert torch.equal(values, scores[:, :k])


@needs_triton
def test_offsets_past_32_bits():
    places = random_latlon(50_000, seed=4).float().cuda()
    h_km = pairwise_haversine(places[-45_000:], places, backend="triton")  # 2.25e9 entries
    wanted = pairwise_haversine(places[-2:].double(), places.double(), backend="reference")
    assert ((h_km[-2:] - wanted).abs() <= (1e-6 * wanted).clamp(min=1e-3)).all()
    del h_km
    x = normal(45_000, 8, dtype=torch.bfloat16)
    y = normal(50_000, 8, seed=1, dtype=torch.bfloat16)
    d = cosine_dissimilarity(x, y, backend="triton")
    wanted = cosine_dissimilarity(x[-2:].double(), y.double(), backend="reference")
    torch.testing.assert_close(d[-2:].double(), wanted, rtol=0, atol=2e-6)


@needs_triton
def test_two_runs_are_equal_bit_for_bit():
    x, y = normal(500, 64, dtype=torch.bfloat16), normal(50_000, 64, seed=1, dtype=torch.bfloat16)
    first, second = (topk_gallery(x, y, 20, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    places, edges = random_latlon(20_000, seed=5).cuda(), log_edges_km(1.0, 20_016.0, 64)
    first, second = (
        binned_semivariance(y[:20_000], places, edges_km=edges, backend="triton") for _ in range(2)
    )
    assert (first.counts == second.counts).all()
    assert (first.gamma[first.counts > 0] == second.gamma[second.counts > 0]).all()


@needs_triton
def test_nothing_waits_for_the_gpu_and_a_graph_can_capture_it():
    x, y = normal(300, 64, dtype=torch.bfloat16), normal(20_000, 64, seed=1, dtype=torch.bfloat16)
    expected = topk_gallery(x, y, 10, backend="triton"), cosine_dissimilarity(x, y, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        topk_gallery(x, y, 10, backend="triton")
        topk_gallery(x, y, 200, backend="triton")
        cosine_dissimilarity(x, y, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = topk_gallery(x, y, 10, backend="triton"), cosine_dissimilarity(x, y, backend="triton")
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured[0][1], expected[0][1])
    assert torch.equal(captured[1], expected[1])
