import numpy as np
import pytest
import torch

from geoclip.coordinates import check_latlon, wrap_longitude


def test_good_coordinates_are_handed_on_as_they_are():
    latlon = np.array([[90.0, 180.0], [-90.0, -180.0], [0.1, -0.0]])
    assert check_latlon(latlon, "here") is latlon


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_a_turn_too_many_is_taken_back(dtype):
    latlon = np.array([[10, 350], [20, -190], [30, 360], [40, -360], [50, 181], [60, 180]], dtype)
    kept = latlon.copy()
    checked = check_latlon(latlon, "here")
    np.testing.assert_array_equal(checked[:, 1], [-10, 170, 0, 0, -179, 180])
    np.testing.assert_array_equal(checked[:, 0], latlon[:, 0])
    np.testing.assert_array_equal(latlon, kept)
    assert checked.dtype == dtype


def test_rows_lie_one_after_the_other():
    latlon = np.array([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]]).T
    assert not latlon.flags.c_contiguous
    checked = check_latlon(latlon, "here")
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, latlon)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_are_wrapped_beyond_180_alone(dtype):
    inside = torch.cat((torch.linspace(-180, 180, 1001), torch.tensor([-1e-30, 1e-30]))).to(dtype)
    assert torch.equal(wrap_longitude(inside), inside)
    outside = torch.tensor([350.0, -190.0, 360.0, 540.0, -540.0, 720.0, 181.0], dtype=dtype)
    wrapped = wrap_longitude(outside)
    expected = [-10, 170, 0, 180, -180, 0, -179]
    # bfloat16 has steps of 2 at 350
    assert wrapped.dtype == dtype
    turns = (wrapped.double() - torch.tensor(expected)) / 360
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=2 / 360 if dtype == torch.bfloat16 else 0)
    just = torch.nextafter(torch.tensor([180.0, -180.0]), torch.tensor([999.0, -999.0]))
    assert (wrap_longitude(just).abs() <= 180).all()
