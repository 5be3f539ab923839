import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import haversine_distances

from semivario_kernels import EARTH_RADIUS_KM, available_backends, pairwise_haversine


@pytest.fixture(params=available_backends(), autouse=True)
def backend(request, monkeypatch):
    monkeypatch.setenv("SEMIVARIO_BACKEND", request.param)


def sklearn_km(a, b):
    return EARTH_RADIUS_KM * haversine_distances(*(np.radians(np.asarray(t)) for t in (a, b)))


def allowed_km(h_km):
    """A metre or a millionth; scikit-learn's own haversine loses centimetres near the antipode."""
    return np.maximum(1e-3, 1e-6 * h_km)


def test_equals_scikit_learn_in_float64(latlon):
    ours = pairwise_haversine(latlon[:120], latlon[80:]).numpy()
    assert ours.shape == (120, 120)
    np.testing.assert_allclose(ours, sklearn_km(latlon[:120], latlon[80:]), rtol=1e-12, atol=1e-9)


def test_special_places_equal_scikit_learn(special_latlon):
    ours, theirs = pairwise_haversine(special_latlon).numpy(), sklearn_km(special_latlon, special_latlon)
    assert (np.abs(ours - theirs) <= allowed_km(theirs)).all()


def test_float32_special_places(special_latlon):
    rounded = special_latlon.float()
    ours, theirs = pairwise_haversine(rounded).numpy(), sklearn_km(rounded.double(), rounded.double())
    assert (np.abs(ours - theirs) <= np.maximum(1.3e-3, allowed_km(theirs))).all()  # scikit-learn loses 0.3 m


def test_known_distances(special_latlon):
    h_km = pairwise_haversine(special_latlon)
    half_turn = np.pi * EARTH_RADIUS_KM
    assert h_km[0, 1] < 1e-9  # one pole, two longitudes
    assert h_km[3, 4] < 1e-9  # across the date line
    assert h_km[7, 8] == 0
    assert h_km[7, 9].item() == pytest.approx(half_turn, abs=1e-6)  # antipode
    assert h_km[0, 2].item() == pytest.approx(half_turn, abs=1e-6)
    assert h_km[7, 10].item() == pytest.approx(np.radians(9e-6) * EARTH_RADIUS_KM, rel=1e-6)  # a metre
    assert h_km[5, 6].item() == pytest.approx(
        np.radians(2e-4) * np.cos(np.radians(12.5)) * EARTH_RADIUS_KM, rel=1e-6
    )


def test_float32_positions_keep_the_allowed_error(latlon):
    rounded = latlon.float()
    ours = pairwise_haversine(rounded)
    assert ours.dtype == torch.float32
    theirs = sklearn_km(rounded.double(), rounded.double())
    assert (np.abs(ours.numpy() - theirs) <= allowed_km(theirs)).all()


def test_longitudes_are_wrapped():
    place, turned = torch.tensor([[10.0, 190.0]]), torch.tensor([[10.0, -170.0]])
    assert pairwise_haversine(place.double(), turned.double()).item() == pytest.approx(0, abs=1e-9)


def test_numpy_in_numpy_out(latlon):
    out = pairwise_haversine(latlon.numpy())
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, pairwise_haversine(latlon).numpy())


def test_whole_degrees_are_taken():
    assert pairwise_haversine(torch.tensor([[0, 0], [0, 90]]))[0, 1].item() == pytest.approx(
        np.pi / 2 * EARTH_RADIUS_KM
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3), r"a: wanted shape \(n, 2\).*got \(3,\)"),
        (torch.zeros(3, 3), r"a: wanted shape \(n, 2\).*got \(3, 3\)"),
        (torch.zeros(0, 2), r"a: .*at least one row, got \(0, 2\)"),
        (torch.tensor([[0.0, 0.0], [91.0, 0.0]]), r"a: .*within ±90, got \(91\.0, 0\.0\) in row 1"),
        (torch.tensor([[2.0, 48.0], [-122.0, 37.0]]), r"a: .*row 1; are latitude and longitude swapped\?"),
        (torch.tensor([[torch.nan, 0.0]]), r"a: wanted finite .*got \(nan, 0\.0\) in row 0"),
        (torch.tensor([[0.0, torch.inf]]), r"a: wanted finite .*inf"),
        (torch.zeros(1, 2, dtype=torch.float16), "a: wanted float32 or float64 degrees, got torch.float16"),
        ([[0.0, 0.0]], "a: wanted a tensor or a NumPy array, got list"),
        (np.array([["north", "west"]]), "a: wanted numbers, got a NumPy array of dtype <U5"),
    ],
)
def test_bad_positions_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        pairwise_haversine(bad)


def test_two_sets_must_agree():
    with pytest.raises(ValueError, match=r"b: wanted the dtype of a, torch.float64, got torch.float32"):
        pairwise_haversine(torch.zeros(1, 2).double(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="b: wanted the device of a, cpu, got meta"):
        pairwise_haversine(torch.zeros(1, 2), torch.zeros(1, 2, device="meta"))
