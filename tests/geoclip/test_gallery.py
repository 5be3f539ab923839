import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoclip import gallery as gallery_module
from geoclip.gallery import Gallery, MapCells
from geoclip.metrics import great_circle_km
from geoclip.prediction import Prediction
from geoclip.prediction_formats import geojson_text
from geoclip.support import order_by_support
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon
from .small_world import small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_places_are_those_of_the_whole_matrix(model, monkeypatch, at_once):
    monkeypatch.setattr(gallery_module, "_PLACES_AT_ONCE", at_once)
    monkeypatch.setattr(gallery_module, "_PAIRS_AT_ONCE", 90 * at_once)
    places, embeddings = random_latlon(90), torch.randn(23, 16)
    gallery = Gallery(model, places)
    latlon, similarity = gallery.place(embeddings, k=5)
    located = gallery.locate(embeddings, k=5)
    with torch.no_grad():
        logits = model(embeddings, torch.from_numpy(places).float())
    best = logits.topk(5, dim=1)
    np.testing.assert_array_equal(latlon, places[best.indices.numpy()])
    np.testing.assert_array_equal(located.latlon, latlon)
    np.testing.assert_allclose(similarity, best.values / model.logit_scale.detach().exp(), atol=1e-6)
    expected = logits.softmax(dim=1).topk(5, dim=1).values
    np.testing.assert_allclose(located.probability, expected, rtol=1e-4)
    np.testing.assert_allclose(gallery.features.norm(dim=1), 1, atol=1e-6)


def test_a_semivariogram_puts_the_best_supported_places_first(model):
    places, embeddings = random_latlon(90), torch.randn(23, 16)
    places[:30] = places[0] + np.random.default_rng(1).normal(0, 0.05, (30, 2))  # a town, 10 km wide
    gallery, wide = Gallery(model, places), VariogramModel("exponential", 0.0, 1.0, 300.0)
    scale = float(model.logit_scale.detach().exp())
    alike, cosines = gallery.place(embeddings, k=90)
    order = order_by_support(alike[:, :64], cosines[:, :64], scale, wide)
    assert (order[:, 0] != 0).any()
    for k in (3, 70):  # within the candidates and beyond
        rows = np.column_stack([order, np.tile(np.arange(64, 90), (23, 1))])[:, :k]
        latlon, similarity = gallery.place(embeddings, k=k, variogram=wide)
        np.testing.assert_array_equal(latlon, np.take_along_axis(alike, rows[:, :, None], 1))
        np.testing.assert_array_equal(similarity, np.take_along_axis(cosines, rows, 1))
    located = gallery.locate(embeddings, k=3, variogram=wide)
    np.testing.assert_array_equal(located.latlon, gallery.place(embeddings, k=3, variogram=wide)[0])


def radius_by_sorting(latlon, share, wanted):
    """The radius around the first place, for the (M, 2) places and (M,) probabilities of one photo."""
    distance = great_circle_km(np.repeat(latlon[[share.argmax()]], len(latlon), axis=0), latlon)
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(share[order].astype(np.float64))
    return distance[order[np.searchsorted(held, wanted * held[-1])]]


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_radius_holds_its_share_of_the_probability(model, monkeypatch, scale):
    monkeypatch.setattr(gallery_module, "_PAIRS_AT_ONCE", 4000)
    places, embeddings = random_latlon(1500, seed=2), torch.randn(31, 16)
    places[:700] = places[0] + np.random.default_rng(1).normal(0, 0.01, (700, 2))  # a town, 1 km wide
    sharper = copy.deepcopy(model)
    sharper.logit_scale.data.fill_(np.log(scale))
    located = Gallery(sharper, places).locate(embeddings, shares=(0.2, 0.5, 0.9))
    with torch.no_grad():
        share = sharper(embeddings, torch.from_numpy(places).float()).softmax(dim=1).numpy()
    expected = [[radius_by_sorting(places, row, wanted) for wanted in (0.2, 0.5, 0.9)] for row in share]
    # near the antipode a metre of chord is many of arc
    far = np.array(expected) > 19_000
    np.testing.assert_allclose(located.radius_km[~far], np.array(expected)[~far], rtol=0, atol=0.005)
    np.testing.assert_allclose(located.radius_km, expected, rtol=0, atol=0.1)
    assert (np.diff(located.radius_km) >= 0).all()


def test_all_the_probability_at_one_place_has_no_radius(model):
    certain = copy.deepcopy(model)
    certain.logit_scale.data.fill_(np.log(1e5))
    located = Gallery(certain, random_latlon(40)).locate(torch.randn(5, 16))
    assert (located.probability > 0.99).all()
    assert (located.radius_km < 0.001).all()
    assert (located.radius_km >= 0).all()


def test_the_density_adds_the_probabilities_of_a_cell(model):
    places, embeddings = random_latlon(200), torch.randn(9, 16)
    places[:3] = [[90.0, 180.0], [-90.0, -180.0], [89.9, 540.0 - 360.0]]
    cells = MapCells(places, 30.0)
    located = Gallery(model, places).locate(embeddings, cells=cells)
    with torch.no_grad():
        share = model(embeddings, torch.from_numpy(places).float()).softmax(dim=1).numpy()
    assert located.density.shape == (9, len(cells.centers))
    np.testing.assert_allclose(located.density.sum(axis=1), 1, rtol=1e-5)
    for cell, center in enumerate(cells.centers):
        inside = cells.cell.numpy() == cell
        assert inside.any()
        # 180° east is 180° west
        east = (places[inside, 1] - center[1] + 540) % 360 - 180
        assert (np.abs(east) <= 15).all()
        assert (np.abs(places[inside, 0] - center[0]) <= 15).all()
        np.testing.assert_allclose(located.density[:, cell], share[:, inside].sum(axis=1), rtol=1e-4)
    assert len({tuple(center) for center in cells.centers.tolist()}) == len(cells.centers)


def test_the_gallery_is_encoded_in_float32_degrees_once(model):
    places = random_latlon(30)
    calls = []
    hook = model.location_encoder.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    gallery = Gallery(model, places)
    gallery.place(torch.randn(3, 16))
    gallery.place(torch.randn(3, 16))
    hook.remove()
    assert torch.equal(torch.cat(calls), torch.from_numpy(places).float())
    expected = F.normalize(model.location_encoder(calls[0]), dim=1)
    assert torch.allclose(gallery.features, expected.detach(), atol=1e-6)


def test_bad_galleries_are_refused(model):
    with pytest.raises(ValueError, match=r"gallery.*swapped"):
        Gallery(model, np.array([[120.0, 3.0]]))
    with pytest.raises(ValueError, match="gallery: wanted at least one place"):
        Gallery(model, np.empty((0, 2)))
    with pytest.raises(ValueError, match=r"k: wanted .*3, got 4"):
        Gallery(model, random_latlon(3)).place(torch.randn(2, 16), k=4)
    with pytest.raises(ValueError, match=r"embeddings have shape \(2, 5\)"):
        Gallery(model, random_latlon(3)).place(torch.randn(2, 5))
    embeddings = torch.randn(4, 16)
    embeddings[2, 5] = torch.nan
    with pytest.raises(ValueError, match="embeddings of photo 3 are NaN or infinite"):
        Gallery(model, random_latlon(3)).place(embeddings)
    with pytest.raises(ValueError, match=r"shares.*1\.5"):
        Gallery(model, random_latlon(3)).locate(torch.randn(2, 16), shares=(1.5,))
    with pytest.raises(ValueError, match=r"degrees.*0"):
        MapCells(random_latlon(3), 0)
    broken = copy.deepcopy(model)
    broken.location_encoder.LocEnc0.head[0].bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="model: its features of the gallery's places are NaN"):
        Gallery(broken, random_latlon(3))


def test_places_counted_up_to_360_are_answered_within_180(model):
    places, embeddings = random_latlon(60), torch.randn(7, 16)
    east = np.column_stack([places[:, 0], places[:, 1] % 360])
    assert (east[:, 1] > 180).any()
    located, expected = (Gallery(model, latlon).locate(embeddings, k=3) for latlon in (east, places))
    np.testing.assert_allclose(located.latlon, expected.latlon, rtol=0, atol=1e-9)
    np.testing.assert_allclose(located.probability, expected.probability, rtol=1e-4)


def test_ranks_of_a_gallery_stored_by_columns(model):
    places, embeddings = random_latlon(30), torch.randn(5, 16)
    rows = np.array([3, 1, 4, 1, 5])
    ranks = Gallery(model, np.asfortranarray(places)).rank(embeddings, rows)
    np.testing.assert_array_equal(ranks, Gallery(model, places).rank(embeddings, rows))


@pytest.mark.parametrize("degrees", [0.1, 2.0, 7.0, 50.0, 80.0])
def test_cells_stay_on_the_map_and_hold_their_places(degrees):
    edge = [[90.0, 179.9], [-90.0, -180.0], [89.9, 180.0], [0.0, 179.999999], [90.0, -180.0]]
    places = np.concatenate([random_latlon(300), edge])
    cells = MapCells(places, degrees)
    west, south, east, north = cells.edges.T
    assert (west >= -180).all()
    assert (south >= -90).all()
    assert (east <= 180).all()
    assert (north <= 90).all()
    assert (west < east).all()
    assert (south < north).all()
    np.testing.assert_allclose(cells.centers, np.stack([south + north, west + east], axis=1) / 2, atol=1e-12)
    # all but those that the map's edge cuts are whole
    for low, high, end in ((west, east, 180), (south, north, 90)):
        np.testing.assert_allclose((high - low)[high < end], degrees, atol=1e-9)
    mine = cells.cell.numpy()
    longitude = (places[:, 1] + 180) % 360 - 180
    rounding = 1e-9
    assert (west[mine] - rounding <= longitude).all()
    assert (longitude <= east[mine] + rounding).all()
    assert (south[mine] - rounding <= places[:, 0]).all()
    assert (places[:, 0] <= north[mine] + rounding).all()


def test_the_map_in_geojson_ends_where_the_world_ends():
    corner = np.array([[90.0, 179.9]])
    density = np.ones(1, np.float32)
    prediction = Prediction("x.jpg", corner, density, np.zeros(2), density, MapCells(corner, 7.0))
    _, polygon = json.loads("".join(geojson_text([prediction])))["features"]
    assert polygon["geometry"]["coordinates"] == [[[177, 85], [180, 85], [180, 90], [177, 90], [177, 85]]]
