import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geoclip import evaluation
from geoclip.evaluation import Gallery, read_places
from geoclip.image_encoder import ImageEncoder
from geoclip.location_encoder import LocationEncoder
from geoclip.model import GeoCLIP

from .rendered_photos import random_latlon
from .small_world import write_store


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return GeoCLIP(
        from_pretrained=False,
        image_encoder=ImageEncoder(None, embedding_dim=16, output_dim=24),
        location_encoder=LocationEncoder([2.0], from_pretrained=False, width=32, output_dim=24),
        gallery=torch.zeros(1, 2),
    )


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_places_are_those_of_the_whole_matrix(model, monkeypatch, at_once):
    monkeypatch.setattr(evaluation, "_PLACES_AT_ONCE", at_once)
    monkeypatch.setattr(evaluation, "_PHOTOS_AT_ONCE", at_once)
    places, embeddings = random_latlon(90), torch.randn(23, 16)
    gallery = Gallery(model, places)
    latlon, similarity = gallery.place(embeddings, k=5)
    probability = gallery.probability(embeddings, similarity)
    with torch.no_grad():
        logits = model(embeddings, torch.from_numpy(places).float())
    best = logits.topk(5, dim=1)
    np.testing.assert_array_equal(latlon, places[best.indices.numpy()])
    np.testing.assert_allclose(similarity, best.values / model.logit_scale.detach().exp(), atol=1e-6)
    np.testing.assert_allclose(probability, logits.softmax(dim=1).topk(5, dim=1).values, rtol=1e-4)
    np.testing.assert_allclose(gallery.features.norm(dim=1), 1, atol=1e-6)


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


def test_places_come_from_stores_arrays_and_tables(tmp_path):
    store = write_store(tmp_path / "store", n=20)
    np.testing.assert_array_equal(read_places(str(tmp_path / "store")), store.latlon)
    np.save(tmp_path / "places.npy", store.latlon)
    np.testing.assert_array_equal(read_places(str(tmp_path / "places.npy")), store.latlon)
    for header in ("LAT,LON", "latitude,longitude", "id,lng,lat"):
        names = header.split(",")
        of = {"lat": 0, "LAT": 0, "latitude": 0, "lng": 1, "LON": 1, "longitude": 1}
        lines = [",".join(repr(float(row[of[n]])) if n in of else "x" for n in names) for row in store.latlon]
        (tmp_path / "places.csv").write_text("\n".join([header, *lines]) + "\n")
        np.testing.assert_array_equal(read_places(str(tmp_path / "places.csv")), store.latlon)


def test_places_from_elsewhere_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_places(str(tmp_path / "nowhere.csv"))
    np.save(tmp_path / "words.npy", np.array(["here"]))
    with pytest.raises(ValueError, match=r"words\.npy"):
        read_places(str(tmp_path / "words.npy"))
    np.save(tmp_path / "three.npy", np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"three\.npy.*\(4, 3\)"):
        read_places(str(tmp_path / "three.npy"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv"):
        read_places(str(tmp_path / "empty.csv"))
    (tmp_path / "half.csv").write_text("lat,lon\n1,\n")
    with pytest.raises(ValueError, match=r"half\.csv.*row 1"):
        read_places(str(tmp_path / "half.csv"))
