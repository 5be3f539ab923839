"""Binned semivariance by Triton, against float64 sums: in its interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from places import SPECIAL_PLACES, random_latlon

pytest.importorskip("triton", reason="Triton is not installed")

from semivario_kernels import binned_semivariance, log_edges_km
from semivario_kernels.backends.binned_torch import TorchBinning
from semivario_kernels.backends.binned_walk import Side
from semivario_kernels.backends.triton import binned
from semivario_kernels.binned_sums import BinnedRequest
from semivario_kernels.geometry import unit_vectors
from semivario_kernels.semivariance import squared_chord_edges

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(binned, "SIDE", 32)
    monkeypatch.setattr(binned, "ROBUST_SIDE", 16)


def side(latlon, v, blocks):
    """Places inside NaN-filled storage, in as many spatial blocks."""
    axes = torch.full((3, len(latlon) + 5), torch.nan, dtype=torch.float64, device=DEVICE)
    axes[:, 2:-3] = unit_vectors(latlon).T
    block = torch.arange(len(latlon), device=DEVICE).mul(blocks).div(len(latlon), rounding_mode="floor").int()
    return Side(axes[:, 2:-3], 1 / v.double().norm(dim=1), block)


def places(n, seed):
    latlon = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(n, seed)])
    v = torch.randn(len(latlon), 9, generator=torch.Generator().manual_seed(seed)) + 0.5
    return latlon.to(DEVICE), v.to(DEVICE)


@pytest.mark.parametrize(("diagonal", "robust"), [(True, False), (False, True)])
def test_a_tile_equals_float64_sums(diagonal, robust):
    edges = squared_chord_edges(log_edges_km(1.0, 20_016.0, 5))
    request = BinnedRequest(edges, 3, wants_quarters=robust, histogram_cells=64 if robust else 0)
    rows_latlon, v = places(29, 1)
    columns_latlon, u = (
        torch.cat([one, more]) for one, more in zip((rows_latlon, v), places(33, 2), strict=True)
    )
    rows, columns = side(rows_latlon, v, 3), side(columns_latlon, u, 3)
    dot = torch.full((len(v), len(u) + 4), torch.nan, device=DEVICE)[:, : len(u)]
    dot.copy_(v @ u.T)
    ours = binned.TritonBinning(request, torch.float32, torch.device(DEVICE))
    theirs = TorchBinning(request, torch.float64, torch.device(DEVICE))
    for _ in range(2):
        ours.add(rows, columns, dot, diagonal)
        theirs.add(rows, columns, dot.double(), diagonal)
    got, wanted = ours.totals(), theirs.totals()
    assert torch.equal(got.sums[:, :, 1:-1, 0], wanted.sums[:, :, 1:-1, 0])
    assert wanted.sums[:, :, 1:-1, 0].sum() > 1000
    torch.testing.assert_close(got.sums[:, :, 1:-1], wanted.sums[:, :, 1:-1], rtol=3e-7, atol=2e-5)
    assert got.duplicates == wanted.duplicates > 0
    if robust:
        torch.testing.assert_close(got.quarter_sums[1:-1], wanted.quarter_sums[1:-1], rtol=1e-5, atol=0.05)
        # a d beside the border of two cells may lie in either
        assert (got.histogram[1:-1].sum(dim=1) == wanted.histogram[1:-1].sum(dim=1)).all()
        assert (got.histogram - wanted.histogram)[1:-1].abs().sum() <= 4


def test_whole_units_are_flushed_before_they_overflow(monkeypatch):
    request = BinnedRequest(squared_chord_edges(log_edges_km(1.0, 20_016.0, 3)), 1)
    latlon, v = places(20, 1)
    one = side(latlon, v, 1)
    dot = v @ v.T
    once, often = (binned.TritonBinning(request, torch.float32, torch.device(DEVICE)) for _ in range(2))
    for _ in range(3):
        once.add(one, one, dot, True)
    monkeypatch.setattr(binned, "MOST_PAIRS", dot.numel())
    for _ in range(3):
        often.add(one, one, dot, True)
    torch.testing.assert_close(often.totals().sums, once.totals().sums, rtol=1e-15, atol=0)
    again = binned.TritonBinning(request, torch.float32, torch.device(DEVICE))
    again.start_from(once.totals())
    again.add(one, one, dot, True)
    torch.testing.assert_close(again.totals().sums, once.totals().sums * 4 / 3, rtol=1e-15, atol=0)


def test_semivariogram_equals_the_reference(monkeypatch):
    monkeypatch.setattr(binned.TritonBinning, "row_blocks", (64, 128))
    monkeypatch.setattr(binned.TritonBinning, "column_batch", 128)
    latlon, v = places(120, 3)
    v = v.half()
    edges = log_edges_km(300.0, 9_000.0, 4)
    ours = binned_semivariance(v, latlon, edges_km=edges, backend="triton")
    wanted = binned_semivariance(v.double(), latlon, edges_km=edges, backend="reference")
    np.testing.assert_array_equal(ours.counts, wanted.counts)
    np.testing.assert_allclose(ours.gamma, wanted.gamma, rtol=1e-6)
    np.testing.assert_allclose(ours.lag_km, wanted.lag_km, rtol=1e-6)
    assert ours.duplicates == wanted.duplicates == 3
