import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances

from semivario_kernels import available_backends, cosine_dissimilarity


@pytest.fixture(params=available_backends(), autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)


@pytest.fixture
def vectors():
    return torch.randn(70, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5


def test_equals_scikit_learn(vectors):
    np.testing.assert_allclose(
        cosine_dissimilarity(vectors[:40], vectors[30:]).numpy(),
        cosine_distances(vectors[:40], vectors[30:]),
        atol=1e-14,
    )


def test_is_half_the_squared_distance_of_unit_vectors(vectors):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    half_square = (unit[:, None] - unit[None]).square().sum(dim=2) / 2
    torch.testing.assert_close(cosine_dissimilarity(vectors), half_square, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)]
)
def test_low_precision_inputs_are_multiplied_in_float32(vectors, dtype, tolerance):
    rounded = vectors.to(dtype)
    ours = cosine_dissimilarity(rounded)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), cosine_dissimilarity(rounded.double()), rtol=0, atol=tolerance)


def test_zero_vector_is_unlike_everything(vectors):
    vectors[3] = 0
    d = cosine_dissimilarity(vectors)
    assert (d[3] == 1).all()
    assert (d[:, 3] == 1).all()


def test_numpy_in_numpy_out(vectors):
    out = cosine_dissimilarity(vectors.numpy())
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float64


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"y: wanted shape \(n, 3\), got \(2, 4\)"),
        (torch.zeros(0, 3), None, r"x: .*at least one row, got \(0, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), None, "x: wanted float32, .* got torch.int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "y: wanted the dtype of x"),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "y: wanted the device of x"),
    ],
)
def test_bad_input_is_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        cosine_dissimilarity(x, y)
