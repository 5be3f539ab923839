import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from semivario_kernels import available_backends, topk_gallery
from semivario_kernels.backends import native_ranking, tiled_matrices


@pytest.fixture(params=available_backends(), autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)
    monkeypatch.setattr(tiled_matrices, "TILE", 12)  # tiles of 96 places, or 2k: smaller than the gallery
    monkeypatch.setattr(native_ranking, "MOST_COLUMNS", 96)
    monkeypatch.setattr(native_ranking, "ROWS", 10)


@pytest.fixture
def features():
    g = torch.Generator().manual_seed(0)
    return torch.randn(23, 9, generator=g), torch.randn(301, 9, generator=g)


@pytest.mark.parametrize("k", [1, 5, 301])
def test_equals_scikit_learn(features, k):
    x, y = (torch.nn.functional.normalize(t.double(), dim=1) for t in features)
    values, indices = topk_gallery(x, y, k)
    distances, neighbours = NearestNeighbors(n_neighbors=k, metric="cosine").fit(y).kneighbors(x)
    np.testing.assert_array_equal(indices.numpy(), neighbours)
    np.testing.assert_allclose(values.numpy(), 1 - distances, atol=1e-12)


def test_ties_come_in_the_order_of_their_index():
    y = torch.tensor([[1.0], [2.0], [2.0], [0.0], [2.0]])
    values, indices = topk_gallery(torch.ones(1, 1), y, 4)
    assert indices.tolist() == [[1, 2, 4, 0]]
    assert values.tolist() == [[2.0, 2.0, 2.0, 1.0]]


def test_low_precision_and_numpy(features):
    x, y = (t.half() for t in features)
    values, indices = topk_gallery(x.numpy(), y.numpy(), 3)
    assert isinstance(values, np.ndarray)
    assert (values.dtype, indices.dtype) == (np.float32, np.int64)
    exact = (x.double() @ y.double().T).topk(3, dim=1)
    np.testing.assert_array_equal(indices, exact.indices)
    np.testing.assert_allclose(values, exact.values, rtol=1e-5)


def test_ties_across_tiles_come_in_the_order_of_their_index():
    y = torch.zeros(300, 1)
    y[[7, 95, 96, 200, 299]] = 1.0
    _, indices = topk_gallery(torch.ones(2, 1), y, 6)
    assert indices.tolist() == [[7, 95, 96, 200, 299, 0]] * 2


@pytest.mark.parametrize("k", [1, 3, 6])
def test_nan_comes_first_wherever_it_is(k):
    y = torch.arange(300.0)[:, None]
    y[[7, 95, 96, 299]] = torch.nan
    values, indices = topk_gallery(torch.ones(2, 1), y, k)
    assert indices.tolist() == [[7, 95, 96, 299, 298, 297][:k]] * 2
    assert values[:, :4].isnan().all()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(2, 3), r"x: .*at least one row, got \(0, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"y: wanted shape \(n, 3\), got \(2, 4\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "y: wanted the dtype of x"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "y: wanted the device of x"),
    ],
)
def test_bad_features_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        topk_gallery(x, y, 1)


def test_autocast_changes_nothing(features):
    k = np.int64(3)  # a whole number, too
    wanted = topk_gallery(*features, k)
    with torch.autocast("cpu", torch.bfloat16):
        got = topk_gallery(*features, k)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])


@pytest.mark.parametrize("k", [0, 302, 1.5])
def test_bad_k_is_refused(features, k):
    with pytest.raises(ValueError, match=rf"k: wanted a whole number in 1 … 301, got {k}"):
        topk_gallery(*features, k)
