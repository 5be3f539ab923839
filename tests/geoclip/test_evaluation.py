"""Evaluation against what a loop over the photos gives."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import norm
from sklearn.neighbors import BallTree

from geoclip import evaluation
from geoclip import gallery as gallery_module
from geoclip.cli import main
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.evaluation import Placed, area_metrics, country_table, place_store, recall_metrics
from geoclip.fit import fit
from geoclip.gallery import Gallery
from geoclip.metrics import geolocation_metrics, great_circle_km, share_metrics
from geoclip.prediction import predict, stored_embeddings
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon
from .small_world import embeddings_of, small_model, write_settings, write_store


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize("at_once", [7, 4096])
def test_places_and_ranks_are_those_of_the_whole_matrix(model, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(evaluation, "_PHOTOS_AT_ONCE", at_once)
    monkeypatch.setattr(gallery_module, "_PLACES_AT_ONCE", at_once)
    places = random_latlon(130, seed=4)
    places[100:] = places[:30]  # the same place again: no rival of itself
    test = write_store(tmp_path / "test", n=40)
    placed = place_store(Gallery(model, places), test)
    with torch.no_grad():
        logits = model(torch.from_numpy(test.read(np.arange(40))), torch.from_numpy(places).float()).numpy()
    assert placed.places == 130
    np.testing.assert_array_equal(placed.latlon, places[logits.argmax(axis=1)])
    nearest = BallTree(np.radians(places), metric="haversine").query(
        np.radians(test.latlon), return_distance=False
    )[:, 0]
    for i in range(40):
        rivals = (places != places[nearest[i]]).any(axis=1)
        better = (logits[i] > logits[i, nearest[i]] + 1e-5) & rivals
        as_good = (logits[i] > logits[i, nearest[i]] - 1e-5) & rivals
        assert 1 + better.sum() <= placed.rank[i] <= 1 + as_good.sum()
    assert len(np.unique(placed.rank)) > 20


def test_a_model_that_tells_no_places_apart_ranks_none_first(model, tmp_path):
    flat = copy.deepcopy(model)
    for parameter in flat.location_encoder.parameters():
        parameter.data.zero_()
    flat.location_encoder.LocEnc0.head[0].bias.data.fill_(1)
    placed = place_store(Gallery(flat, random_latlon(60)), write_store(tmp_path / "test", n=5))
    assert (placed.rank == 60).all()


def test_predict_places_ten_crops_as_eval_does(model, tmp_path):
    crops = np.random.default_rng(5).normal(size=(40, 10, 16))
    with EmbeddingWriter(tmp_path / "ten", 16, views=10, info={"pictures": "tencrop"}) as writer:
        writer.append(range(40), random_latlon(40), crops.mean(axis=1), views=crops)
    store, gallery = EmbeddingStore.open(tmp_path / "ten"), Gallery(model, random_latlon(90))
    found = np.stack([p.latlon[0] for p in predict(stored_embeddings(store, batch_size=7), gallery, k=1)])
    np.testing.assert_array_equal(found, place_store(gallery, store).latlon)
    # the mean of the embeddings is another question
    assert (found != gallery.place(torch.from_numpy(store.read(range(40))))[0][:, 0]).any()


def placed_with_ranks(rank, places):
    return Placed(np.zeros((len(rank), 2)), np.zeros((len(rank), 2)), np.array(rank), places)


def test_recall_counts_ranks():
    recall = recall_metrics(placed_with_ranks([1, 2, 5, 6, 10, 11, 12, 13, 40, 200], 1200))
    values = {name: entry["value"] for name, entry in recall.items()}
    assert values == {
        "recall_at_1": 0.1,
        "recall_at_5": 0.3,
        "recall_at_10": 0.5,
        "recall_at_1_percent": 0.7,
    }
    few = recall_metrics(placed_with_ranks([1, 2, 3], 4))
    assert set(few) == {"recall_at_1", "recall_at_1_percent"}  # among four places R@5 says nothing
    assert few["recall_at_1_percent"]["value"] == pytest.approx(1 / 3)


def test_shares_have_wilsons_interval():
    right = np.random.default_rng(0).random(400) < 0.3
    (entry,) = share_metrics({"x": right, "nothing": np.zeros(0, bool)}, confidence=0.9).values()
    assert entry["value"] == right.mean()
    # where the score test of p just does not reject: |p̂ − p| = z·√(p(1 − p)/n)
    for p in (entry["low"], entry["high"]):
        assert abs(right.mean() - p) == pytest.approx(norm.ppf(0.95) * np.sqrt(p * (1 - p) / 400), rel=1e-9)
    assert entry["low"] < entry["value"] < entry["high"]
    with pytest.raises(ValueError, match="confidence"):
        share_metrics({}, confidence=1)


def names(*values):
    return pa.array(values, pa.string()).dictionary_encode()


def test_areas_are_those_of_the_nearest_labelled_place():
    labels_at = np.array([[0.0, 0.0], [0.0, 10.0], [0.0, 20.0], [50.0, 179.0]])
    labels = {
        "country": names("A", "A", "B", "C"),
        "region": names("North", "South", "North", None),
        "city": names(None, None, "Town", "Town"),
    }
    predicted = np.array([[1.0, 1.0], [0.0, 9.0], [0.0, 16.0], [50.0, -179.5], [0.0, 19.0], [3.0, 2.0]])
    placed = Placed(predicted, predicted, np.ones(6, np.int64), 4)
    areas = {
        "country": names("A", "B", "B", "C", "A", None),
        "region": names("North", "South", "North", None, "North", "North"),
        "sub_region": names("x", "x", "x", "x", "x", "x"),
        "city": names("Town", None, "Town", "Town", "Town", None),
    }
    result = area_metrics(placed, areas, labels_at, labels)
    # country: A right, B wrong (A), B right, C right across 180°, A wrong (B), unknown
    assert result["photos"] == {"country": 5, "region": 5, "city": 4}
    assert result["accuracy"]["country"]["value"] == 3 / 5
    # region: North of A right; South of B wrong, it is A's; North of B right; unknown; North of A wrong, it
    # is B's; North where the country is not known right
    assert result["accuracy"]["region"]["value"] == 3 / 5
    # city, nearest place with one: Town of B for an A; Town of B right; Town of C right; Town of B for an A
    assert result["accuracy"]["city"]["value"] == 2 / 4
    distance = great_circle_km(labels_at[[0, 1, 2, 3, 2, 0]], predicted)
    assert result["label_distance_km"]["median"] == pytest.approx(np.median(distance))


def test_each_country_has_its_metrics():
    truth, predicted = random_latlon(30, 1), random_latlon(30, 2)
    country = names(*["F", "E", "E", None, "F"] * 6)
    table = country_table(Placed(truth, predicted, np.ones(30, np.int64), 9), country)
    assert [(row["country"], row["photos"]) for row in table] == [("E", 12), ("F", 12)]
    mine = np.isin(np.arange(30) % 5, (1, 2))
    assert table[0]["metrics"] == geolocation_metrics(predicted[mine], truth[mine], bootstrap=200)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run, and stores of its places and of others with areas."""
    folder = tmp_path_factory.mktemp("evaluated")
    fit(["--config", str(write_settings(folder, steps=3))])
    for name, count, seed in (("labelled", 300, 0), ("test", 50, 9)):
        latlon = random_latlon(count, seed)
        areas = {
            "country": names(*("<North>" if latitude > 0 else "South" for latitude in latlon[:, 0])),
            "city": names(*("east" if longitude > 0 else None for longitude in latlon[:, 1])),
        }
        with EmbeddingWriter(folder / name, 16, info={"backbone": None}) as writer:
            writer.append(range(count), latlon, embeddings_of(latlon), areas=areas)
    return folder


def evaluate(folder, *arguments):
    command = ["eval", folder / "run" / "last.ckpt", *arguments, "--gallery-cache", folder / "cache"]
    return main([str(argument) for argument in command])


def test_eval_writes_numbers_and_a_report(trained, tmp_path, capsys):
    out = tmp_path / "new" / "metrics.json"
    gallery = ["--gallery", trained / "labelled", "--bootstrap", 50]
    assert evaluate(trained, trained / "test", *gallery, "--out", out) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    test = EmbeddingStore.open(trained / "test")
    assert (result["photos"], result["places"]) == (50, 300)
    assert set(result["recall"]) == {f"recall_at_{k}" for k in ("1", "5", "10", "1_percent")}
    assert result["areas"]["labels"] == str(trained / "labelled")
    assert result["areas"]["photos"] == {"country": 50, "city": int((test.latlon[:, 1] > 0).sum())}
    assert {row["country"] for row in result["countries"]} == {"<North>", "South"}
    assert sum(row["photos"] for row in result["countries"]) == 50
    for entry in (*result["metrics"].values(), *result["areas"]["accuracy"].values()):
        assert entry["low"] <= entry["value"] <= entry["high"]
    for name in ("median_km", "recall_at_5", "city", "50 photos, 300 places"):
        assert name in printed
    page = out.with_suffix(".html").read_text()
    for text in ("R@1 %", "city", "GeoScore", "&lt;North&gt;", "map of errors", "within 25 km"):
        assert text in page
    assert "<North>" not in page
    assert "<script" not in page
    assert not any(f'{attribute}="http' in page for attribute in ("src", "href"))


def test_eval_answers_with_the_best_supported_place(trained, tmp_path):
    # without correlation a place has its own probability alone
    for name, range_km in (("none", 1e-6), ("wide", 3000.0)):
        VariogramModel("exponential", 0.0, 1.0, range_km).save(tmp_path / f"{name}.json")
    options = ["--gallery", trained / "labelled", "--bootstrap", 20, "--out", tmp_path / "m.json"]
    found = {}
    for name in ("", "none", "wide"):
        chosen = ["--variogram", tmp_path / f"{name}.json"] if name else []
        assert evaluate(trained, trained / "test", *options, *chosen) == 0
        found[name] = json.loads((tmp_path / "m.json").read_text())
    assert found["wide"]["variogram"] == str(tmp_path / "wide.json")
    assert found["none"]["metrics"] == found[""]["metrics"] != found["wide"]["metrics"]


def test_eval_without_areas_says_why(trained, tmp_path, capsys):
    out = ["--out", tmp_path / "metrics.json", "--bootstrap", 20]
    np.save(tmp_path / "gallery.npy", random_latlon(40))
    gallery = ["--gallery", tmp_path / "gallery.npy", *out]
    assert evaluate(trained, trained / "test", *gallery) == 0
    assert "--labels names no folder" in capsys.readouterr().out
    assert "--labels names no folder" in (tmp_path / "metrics.html").read_text()
    assert evaluate(trained, trained / "test", *gallery, "--labels", trained / "train") == 0
    assert "train names none of the areas" in capsys.readouterr().out
    assert evaluate(trained, trained / "train", *gallery, "--labels", trained / "labelled") == 0
    assert "train names no countries" in capsys.readouterr().out
    assert evaluate(trained, trained / "test", *gallery, "--labels", trained / "labelled") == 0
    assert "not measured" not in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["areas"]["photos"]["country"] == 50


def test_nan_embeddings_and_bad_numbers_are_one_line(trained, tmp_path, capsys):
    write_store(tmp_path / "nan", n=20)
    array = np.load(tmp_path / "nan" / "shard-00000.npy")
    array[7, 3] = np.nan
    np.save(tmp_path / "nan" / "shard-00000.npy", array)
    gallery = ["--gallery", trained / "labelled", "--out", tmp_path / "metrics.json"]
    for arguments, word in (
        ([tmp_path / "nan", *gallery], "row 7 holds NaN"),
        ([trained / "test", *gallery, "--bootstrap", 0], "--bootstrap"),
        ([trained / "test", *gallery, "--out", tmp_path / "no" / "m.html"], "--out: "),
        ([trained / "test", *gallery, "--labels", tmp_path / "nowhere"], "nowhere"),
        ([trained / "test", *gallery, "--variogram", tmp_path / "none.json"], "none.json"),
    ):
        capsys.readouterr()
        assert evaluate(trained, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("split", "warned"), [("train", True), ("test", False), (None, False)])
def test_eval_warns_of_training_photos(trained, tmp_path, capsys, split, warned):
    latlon = random_latlon(20, 4)
    info = {"backbone": None} if split is None else {"backbone": None, "split": split}
    with EmbeddingWriter(tmp_path / "photos", 16, info=info) as writer:
        writer.append(range(20), latlon, embeddings_of(latlon))
    options = ["--gallery", trained / "labelled", "--bootstrap", 5, "--out", tmp_path / "m.json"]
    assert evaluate(trained, tmp_path / "photos", *options) == 0
    line = f"warning: {tmp_path / 'photos'} holds the training split: wanted unseen photos"
    assert capsys.readouterr().err.splitlines() == ([line] if warned else [])
