import json
import math

import gstools as gs
import numpy as np
import pytest
import torch

from semivario_kernels import EARTH_RADIUS_KM, VariogramModel

H_KM = np.array([0.0, 1e-3, 0.5, 3.0, 40.0, 299.0, 301.0, 1000.0, 6000.0, 19000.0, math.pi * EARTH_RADIUS_KM])
GSTOOLS = {
    "stable": lambda **k: gs.Stable(alpha=0.45, **k),
    "exponential": gs.Exponential,
    "gaussian": gs.Gaussian,
    "spherical": gs.Spherical,
    "matern32": lambda **k: gs.Matern(nu=1.5, **k),
}


def model_of(kind, metric):
    return VariogramModel(kind, 0.07, 0.8, 300.0, 0.45, metric)


@pytest.mark.parametrize("kind", GSTOOLS)
def test_arc_model_equals_gstools(kind):
    theirs = GSTOOLS[kind](dim=1, var=0.8, nugget=0.07, len_scale=300.0)
    ours = model_of(kind, "arc")
    np.testing.assert_allclose(ours(H_KM), theirs.variogram(H_KM), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.correlation(H_KM), theirs.correlation(H_KM), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(ours.to_gstools().variogram(H_KM), ours(H_KM), rtol=1e-12)


@pytest.mark.parametrize("kind", GSTOOLS)
def test_chord_model_equals_gstools_on_the_sphere(kind):
    theirs = GSTOOLS[kind](latlon=True, geo_scale=EARTH_RADIUS_KM, var=0.8, nugget=0.07, len_scale=300.0)
    ours = model_of(kind, "chord")
    np.testing.assert_allclose(ours(H_KM), theirs.vario_yadrenko(H_KM), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours.to_gstools().vario_yadrenko(H_KM), ours(H_KM), rtol=1e-12)


@pytest.mark.parametrize("metric", ["arc", "chord"])
@pytest.mark.parametrize("kind", GSTOOLS)
def test_gstools_round_trip(kind, metric):
    ours = model_of(kind, metric)
    back = VariogramModel.from_gstools(ours.to_gstools())
    assert back.metric == metric
    np.testing.assert_allclose(back(H_KM), ours(H_KM), rtol=1e-12)


def test_gstools_radians_and_rescaling_are_converted():
    theirs = gs.Exponential(latlon=True, var=1.0, len_scale=0.05, rescale=2.0)  # radians
    ours = VariogramModel.from_gstools(theirs)
    assert ours.len_scale_km == pytest.approx(0.05 * EARTH_RADIUS_KM / 2)
    np.testing.assert_allclose(ours(H_KM), theirs.vario_yadrenko(H_KM / EARTH_RADIUS_KM), rtol=1e-12)


def test_nested_model_is_the_sum_of_its_structures():
    nested = VariogramModel(("stable", "spherical"), 0.1, (0.3, 0.5), (5.0, 900.0), (0.6, 1.0))
    parts = VariogramModel("stable", 0.1, 0.3, 5.0, 0.6)(H_KM) + VariogramModel("spherical", 0, 0.5, 900.0)(
        H_KM
    )
    np.testing.assert_allclose(nested(H_KM), parts, rtol=1e-12)
    np.testing.assert_allclose(nested.to_gstools().variogram(H_KM), parts, rtol=1e-12)
    np.testing.assert_allclose(VariogramModel.from_gstools(nested.to_gstools())(H_KM), parts, rtol=1e-12)
    assert nested.sill == pytest.approx(0.9)
    assert str(nested) == (
        "nugget 0.100, stable 0.300 with a length scale of 5 km and alpha 0.6, "
        "spherical 0.500 with a length scale of 900 km, sill 0.900"
    )


@pytest.mark.parametrize("kind", GSTOOLS)
def test_the_sill_at_infinity(kind):
    assert model_of(kind, "arc")(math.inf) == pytest.approx(model_of(kind, "arc").sill, rel=1e-12)


def test_nugget_at_distance_zero():
    model = model_of("stable", "arc")
    assert model(0.0) == 0.07
    assert model.correlation(0.0) == 1.0


def test_types_come_back_as_they_went_in():
    model = model_of("exponential", "arc")
    assert isinstance(model(3.0), float)
    assert isinstance(model([1.0, 2.0]), np.ndarray)
    tensor = model(torch.tensor([1.0, 2.0]))
    assert tensor.dtype == torch.float32
    torch.testing.assert_close(tensor.double(), torch.from_numpy(model([1.0, 2.0])), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("model", "fraction", "expected"),
    [
        (VariogramModel("exponential", 0.1, 1.0, 100.0), 0.95, 100 * math.log(20)),
        (VariogramModel("stable", 0.1, 1.0, 100.0, 0.5), 0.9, 100 * math.log(10) ** 2),
        (VariogramModel("exponential", 0.1, 1.0, 1e5), 0.95, 1e5 * math.log(20)),
        (VariogramModel("exponential", 0.1, 1.0, 1e5, metric="chord"), 0.95, math.inf),
        (
            VariogramModel("exponential", 0.1, 1.0, 1000.0, metric="chord"),
            0.95,
            2 * EARTH_RADIUS_KM * math.asin(1000 * math.log(20) / (2 * EARTH_RADIUS_KM)),
        ),
    ],
)
def test_range(model, fraction, expected):
    assert model.range_km(fraction) == pytest.approx(expected, rel=1e-9)


def test_save_and_load(tmp_path):
    nested = VariogramModel(("stable", "spherical"), 0.1, (0.3, 0.5), (5.0, 900.0), (0.6, 1.0), "chord")
    for model in (nested, model_of("stable", "arc")):
        model.save(tmp_path / "model.json")
        assert VariogramModel.load(tmp_path / "model.json") == model


def test_a_model_without_a_range_is_loaded_with_a_warning(tmp_path):
    model_of("stable", "arc").save(tmp_path / "model.json", doubt="the curve is flat")
    with pytest.warns(UserWarning, match=r"model\.json: no resolvable range: the curve is flat"):
        assert VariogramModel.load(tmp_path / "model.json") == model_of("stable", "arc")


@pytest.mark.parametrize("text", ["not json", "[1]", "{}", json.dumps({"kind": "stable", "sill": 1})])
def test_a_file_that_holds_no_model_is_refused(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json: not a variogram model"):
        VariogramModel.load(tmp_path / "model.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", 0.1, 0.5, 10.0), "kind: wanted one of stable, .* got 'linear'"),
        (("stable", -0.1, 0.5, 10.0), r"nugget: wanted a finite number in \[0, inf\], got -0.1"),
        (("stable", 0.1, -0.5, 10.0), "psill: .*got -0.5"),
        (("stable", 0.1, 0.5, 0.0), r"len_scale_km: .*\(0, inf\], got 0.0"),
        (("stable", 0.1, 0.5, 10.0, 2.5), r"alpha: .*\(0, 2\], got 2.5"),
        (("stable", 0.1, math.nan, 10.0), "psill: .*got nan"),
        (("stable", 0.1, 0.5, 10.0, 1.0, "plane"), "metric: wanted 'arc' or 'chord', got 'plane'"),
        ((("stable", "stable"), 0.1, (0.5,), (10.0, 20.0)), "wanted one length"),
    ],
)
def test_bad_models_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VariogramModel(*arguments)


@pytest.mark.parametrize("bad", [-1.0, math.nan, [1.0, -2.0]])
def test_bad_distances_are_refused(bad):
    with pytest.raises(ValueError, match="h_km: wanted distances ≥ 0 km"):
        model_of("stable", "arc")(bad)


def test_foreign_gstools_models_are_refused():
    with pytest.raises(ValueError, match=r"model: wanted Stable, .*got Linear"):
        VariogramModel.from_gstools(gs.Linear(dim=1))
    with pytest.raises(ValueError, match="isotropic"):
        VariogramModel.from_gstools(gs.Exponential(dim=2, anis=0.5))
