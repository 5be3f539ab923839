import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from semivario_kernels import available_backends, topk_gallery


@pytest.fixture(params=available_backends(), autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)


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


@pytest.mark.parametrize("k", [0, 302, 1.5])
def test_bad_k_is_refused(features, k):
    with pytest.raises(ValueError, match=rf"k: wanted a whole number in 1 … 301, got {k}"):
        topk_gallery(*features, k)
