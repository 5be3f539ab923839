"""Distances, dissimilarities and rankings by Triton: in its interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from places import SPECIAL_PLACES, random_latlon
from sklearn.metrics.pairwise import cosine_distances, haversine_distances

pytest.importorskip("triton", reason="Triton is not installed")

from semivario_kernels import EARTH_RADIUS_KM, pairwise_haversine
from semivario_kernels.backends.triton import dissimilarity, haversine, topk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def inside_nan(matrix):
    """The same numbers as part of a larger matrix of NaN."""
    n, m = matrix.shape
    storage = matrix.new_full((n + 2, m + 3), torch.nan)
    storage[1 : n + 1, 2 : m + 2] = matrix
    return storage[1 : n + 1, 2 : m + 2]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several tiles, shares and blocks, each ragged, in a hundred columns."""
    monkeypatch.setattr(topk, "ROWS", 2)
    monkeypatch.setattr(topk, "PAIRS", 2 * 75)
    monkeypatch.setattr(topk, "BLOCK", 16)


def exact(x, y, k):
    """A stable sort keeps equal values in the order of their index."""
    scores = (x.double() @ y.double().T).cpu()
    values, indices = torch.sort(scores, dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


@pytest.mark.parametrize(
    ("dtype", "k"), [(torch.float32, 16), (torch.float32, 1), (torch.float16, 5), (torch.float64, 5)]
)
def test_topk_is_exact_over_tiles_and_shares(small_blocks, dtype, k):
    x, y = normal(3, 9, dtype=dtype), normal(203, 9, seed=1, dtype=dtype)
    values, indices = topk.topk_gallery(inside_nan(x), inside_nan(y), k)
    wanted_values, wanted = exact(x, y, k)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(indices.cpu(), wanted)
    torch.testing.assert_close(values.cpu().double(), wanted_values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [7, 150])
def test_equal_values_come_in_the_order_of_their_index(small_blocks, k):
    x, y = normal(3, 2).round(), normal(203, 2, seed=1).round()  # hundreds of ties, 0 and −0 among them
    y[7], y[150] = -0.0, 0.0
    values, indices = topk.topk_gallery(x, y, k)
    wanted_values, wanted = exact(x, y, k)
    assert torch.equal(indices.cpu(), wanted)
    assert torch.equal(values.cpu().double(), wanted_values)


def test_rankings_of_more_than_128_are_sorted(monkeypatch):
    monkeypatch.setattr(topk, "BLOCK", 16)
    x, y = normal(3, 5), normal(700, 5, seed=1)
    values, indices = topk.topk_gallery(x, y, 300)
    wanted_values, wanted = exact(x, y, 300)
    assert torch.equal(indices.cpu(), wanted)
    torch.testing.assert_close(values.cpu().double(), wanted_values, rtol=1e-6, atol=1e-6)


def test_infinite_and_undefined_scores(small_blocks):
    y = torch.arange(60.0, device=DEVICE)[:, None]
    y[40], y[50], y[3] = torch.inf, -torch.inf, torch.nan
    values, indices = topk.topk_gallery(torch.ones(1, 1, device=DEVICE), y, 4)
    assert indices.tolist() == [[3, 40, 59, 58]]  # as torch.topk, which takes NaN for the largest
    assert values[0, 0].isnan()
    assert values[0, 1:].tolist() == [torch.inf, 59.0, 58.0]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-6), (torch.float64, 1e-14)]
)
def test_dissimilarity_equals_scikit_learn(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(dissimilarity, "ROWS", 8)
    monkeypatch.setattr(dissimilarity, "COLUMNS", 16)
    x, y = 5 * normal(21, 33, dtype=dtype), normal(37, 33, seed=1, dtype=dtype)
    y[2] = 0
    d = dissimilarity.cosine_dissimilarity(inside_nan(x), inside_nan(y))
    assert d.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = torch.from_numpy(cosine_distances(x.double().cpu(), y.double().cpu()))
    torch.testing.assert_close(d.cpu().double(), wanted, rtol=0, atol=tolerance)
    assert (d[:, 2] == 1).all()
    assert (dissimilarity.cosine_dissimilarity(x, x).diagonal() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_equal_scikit_learn(monkeypatch, dtype):
    monkeypatch.setattr(haversine, "ROWS", 16)
    monkeypatch.setattr(haversine, "COLUMNS", 32)
    places = torch.cat([torch.tensor(SPECIAL_PLACES, dtype=torch.float64), random_latlon(70, seed=3)]).to(
        dtype
    )
    h_km = pairwise_haversine(places[:37].to(DEVICE), places.to(DEVICE), backend="triton")
    assert h_km.dtype == dtype
    radians = np.radians(places.double().numpy())
    wanted = EARTH_RADIUS_KM * haversine_distances(radians[:37], radians)
    # scikit-learn itself loses 0.3 m near the antipode
    allowed = np.maximum(1.3e-3 if dtype == torch.float32 else 3e-4, 1e-6 * wanted)
    assert (np.abs(h_km.cpu().double().numpy() - wanted) <= allowed).all()
