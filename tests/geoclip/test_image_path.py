"""Photos to places for real, with the commands a user types: embed, variogram, fit, eval, predict."""

import csv
import io
import json

import numpy as np
import open_clip
import pytest
from PIL import Image

from geoclip.cli import main
from geoclip.embedding_store import EmbeddingStore
from geoclip.metrics import great_circle_km
from semivario_kernels import EmpiricalVariogram, VariogramModel

from .rendered_photos import random_latlon, render_photos
from .small_world import write_store

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """400 photos, their embeddings by a tiny model with random weights, a variogram and ten steps."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "tiny-image-path.json").write_text(json.dumps(TINY))
    backbone = ["--backbone", folder / "tiny-image-path.json", "--pretrained", "none", "--workers", 0]
    for split, (count, seed) in {"train": (400, 0), "test": (60, 1)}.items():
        photos = render_photos(folder / "photos" / split, count, seed)
        run("embed", photos, folder / split, *backbone)
    variogram = ["--first-km", 500, "--bins", 20, "--kind", "exponential"]
    run("variogram", folder / "train", "--out", folder / "variogram.json", *variogram)
    (folder / "fit.yaml").write_text(f"""
out: {folder / "run"}
trainer: {{max_steps: 10, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}}
data: {{train: {folder / "train"}, batch_size: 64, sampler: neighbours}}
model:
  {{output_dim: 32, sigma: [1.0, 4.0], width: 64, encoded_size: 32, queue_size: 128,
    variogram: {folder / "variogram.json"}, strengths: {{hard: 1, "false": 6}}, learning_rate: 0.01}}
""")
    run("fit", "--config", folder / "fit.yaml")
    return folder


def test_embeddings_carry_what_the_photos_show(folder):
    store = EmbeddingStore.open(folder / "train")
    assert len(store) == 400
    assert store.dim == 32
    np.testing.assert_allclose(store.latlon, random_latlon(400, 0), atol=1e-6)
    assert store.info == {"backbone": "tiny-image-path", "pretrained": None, "backbone_config": TINY}


def test_near_photos_are_more_alike(folder):
    empirical = EmpiricalVariogram.load(folder / "variogram.npz")
    near, far = empirical.gamma[empirical.lag_km < 1000], empirical.gamma[empirical.lag_km > 8000]
    assert np.nanmean(near) < 0.7 * np.nanmean(far)
    model = VariogramModel.load(folder / "variogram.json")
    assert model.correlation(200.0) > model.correlation(5000.0)


def test_ten_steps_lower_the_loss(folder):
    from geoclip.fit import read_curves

    loss = read_curves(folder / "run")["loss"]
    assert len(loss) == 10
    # the queue, and with it the number of negatives, grows to its 128 in the first steps: from there on
    assert loss[-1] < loss[3] - 0.05


@pytest.fixture
def predict(folder, capsys):
    """Run `geoclip predict` with the trained checkpoint: exit code, standard output, error lines."""

    def call(*arguments):
        capsys.readouterr()
        options = ["--checkpoint", folder / "run" / "last.ckpt", "--gallery", folder / "train"]
        options += ["--gallery-cache", folder / "cache"]
        code = main([str(argument) for argument in ["predict", *arguments, *options]])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


def test_a_photo_is_placed(folder, predict):
    photos = [folder / "photos" / "test" / f"{i:05d}.jpg" for i in range(3)]
    code, out, errors = predict(*photos, "--top-k", 4)
    assert (code, errors) == (0, [])
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["photo"] for row in rows] == [str(photo) for photo in photos for _ in range(4)]
    assert [row["rank"] for row in rows] == list("1234") * 3
    places = EmbeddingStore.open(folder / "train").latlon
    for i in range(3):
        mine = rows[4 * i : 4 * i + 4]
        probability = np.array([float(row["probability"]) for row in mine])
        assert (np.diff(probability) <= 0).all()
        assert 1 / 400 < probability[0] < 1
        assert probability.sum() <= 1
        assert 0 <= float(mine[0]["radius_50_km"]) <= float(mine[0]["radius_90_km"]) < 20_016
        for row in mine:
            place = np.array([[float(row["latitude"]), float(row["longitude"])]])
            assert np.abs(places - place).sum(axis=1).min() < 1e-5
    # the order may change with a semivariogram, not what the most probable places are
    supported = predict(*photos, "--top-k", 64, "--variogram", folder / "variogram.json")
    alike = predict(*photos, "--top-k", 64)
    assert supported != alike
    first, again = (
        sorted((row["photo"], row["latitude"], row["longitude"]) for row in csv.DictReader(io.StringIO(text)))
        for _, text, _ in (alike, supported)
    )
    assert first == again


def test_files_folders_lists_batches_and_formats_agree(folder, predict, tmp_path, monkeypatch):
    test = folder / "photos" / "test"
    photos = [str(test / f"{i:05d}.jpg") for i in range(60)]
    _, files, _ = predict(*photos, "--batch-size", 60)
    assert predict(test, "--batch-size", 7) == (0, files, [])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*photos[2:], ""])))
    assert predict(*photos[:2], "-", "--out", tmp_path / "new" / "places.csv") == (0, "", [])
    assert (tmp_path / "new" / "places.csv").read_text() == files
    rows = list(csv.DictReader(io.StringIO(files)))
    _, text, _ = predict(test, "--format", "json", "--density", 20)
    entries = json.loads(text)
    assert [entry["photo"] for entry in entries] == photos
    for entry, first in zip(entries, rows[::5], strict=True):
        assert len(entry["places"]) == 5
        for name in ("latitude", "longitude", "probability"):
            assert entry["places"][0][name] == pytest.approx(float(first[name]), abs=1e-6)
        assert entry["radius_90_km"] == pytest.approx(float(first["radius_90_km"]), abs=2e-3)
        assert entry["density"]["degrees"] == 20
        held = np.array(entry["density"]["cells"])
        assert 0.9 < held[:, 2].sum() <= 1 + 1e-6  # the faintest cells are left out
        assert (held[:, 2] >= 5e-4).all()
    _, text, _ = predict(test, "--format", "geojson", "--density", 20, "--top-k", 2)
    collection = json.loads(text)
    assert collection["type"] == "FeatureCollection"
    points = [f for f in collection["features"] if f["geometry"]["type"] == "Point"]
    polygons = [f for f in collection["features"] if f["geometry"]["type"] == "Polygon"]
    assert [point["properties"]["rank"] for point in points] == [1, 2] * 60
    for point, entry in zip(points[::2], entries, strict=True):
        best = entry["places"][0]
        assert point["geometry"]["coordinates"] == [best["longitude"], best["latitude"]]
        assert point["properties"]["radius_50_km"] == pytest.approx(entry["radius_50_km"], abs=1e-3)
    assert len(polygons) == sum(len(entry["density"]["cells"]) for entry in entries)
    (ring,) = polygons[0]["geometry"]["coordinates"]
    latitude, longitude, probability = entries[0]["density"]["cells"][0]
    assert ring[0] == ring[-1] == [longitude - 10, latitude - 10]
    assert ring[2] == [longitude + 10, latitude + 10]
    assert polygons[0]["properties"] == {"photo": photos[0], "probability": pytest.approx(probability)}


def test_cached_embeddings_are_placed_like_their_photos(folder, predict):
    _, files, _ = predict(folder / "photos" / "test", "--top-k", 1)
    code, stored, errors = predict(folder / "test", "--top-k", 1)
    assert (code, errors) == (0, [])
    files, stored = (list(csv.DictReader(io.StringIO(text))) for text in (files, stored))
    assert [row["photo"] for row in stored] == [f"photo-{i}" for i in range(60)]
    # embeddings are stored in half precision: a tie may fall the other way
    same = [a["latitude"] == b["latitude"] for a, b in zip(files, stored, strict=True)]
    assert sum(same) >= 57


def test_predict_agrees_with_eval(folder, tmp_path, predict):
    """The top place of every test photo, asked for as files, has the error that eval reports."""
    checkpoint, gallery = folder / "run" / "last.ckpt", ["--gallery", folder / "train"]
    gallery += ["--gallery-cache", folder / "cache"]
    run("eval", checkpoint, folder / "test", *gallery, "--out", tmp_path / "metrics.json")
    _, out, _ = predict(folder / "photos" / "test", "--top-k", 1)
    rows = csv.DictReader(io.StringIO(out))
    predicted = np.array([[float(row["latitude"]), float(row["longitude"])] for row in rows])
    error = great_circle_km(predicted, random_latlon(60, 1))
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    # embeddings are stored in half precision: a tie may fall the other way
    assert np.median(error) == pytest.approx(metrics["median_km"]["value"], rel=0.05)


def test_a_broken_photo_is_named_and_left_out(folder, predict, tmp_path):
    good = folder / "photos" / "test" / "00000.jpg"
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "words.jpg").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    names = ["cut.jpg", "empty.jpg", "words.jpg", "nowhere.jpg"]
    _, alone, _ = predict(good)
    code, out, errors = predict(good, *(tmp_path / name for name in names), "--batch-size", 2)
    assert (code, out) == (1, alone)
    assert len(errors) == 5
    for name, line in zip(names, errors, strict=False):
        assert line.startswith(f"geoclip: {tmp_path / name}: ")
    assert errors[-1] == "geoclip: 4 of 5 photos left out"
    code, out, errors = predict(tmp_path / "cut.jpg")
    assert code == 1
    assert len(out.splitlines()) == len(errors) == 1
    code, _, (line,) = predict(tmp_path / "folder.jpg")
    assert code == 2
    assert "holds no photo" in line
    code, _, (line,) = predict(folder / "test", tmp_path / "cut.jpg")
    assert code == 2
    assert "holds embeddings: wanted alone, without other photos" in line


def test_embed_says_what_it_left_out(folder, tmp_path, capsys):
    photos = render_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "00003.jpg").write_bytes(b"no photo")
    backbone = ["--backbone", folder / "tiny-image-path.json", "--pretrained", "none", "--workers", 0]
    run("embed", photos, tmp_path / "out", *backbone, "--max-broken", 1)
    captured = capsys.readouterr()
    assert captured.out.startswith("4 embeddings of 32 numbers")
    assert f"1 of 5 photos left out: see {tmp_path / 'out' / 'broken.txt'}\n" in captured.err


def test_another_process_knows_the_backbone_without_its_file(folder, predict, tmp_path, capsys, monkeypatch):
    """From the checkpoint, and from what was exported of it."""
    photo = folder / "photos" / "test" / "00000.jpg"
    _, expected, _ = predict(photo)
    known = open_clip.factory._MODEL_CONFIGS
    run("export", folder / "run" / "last.ckpt", tmp_path / "release", "--gallery", folder / "train")
    places = ["--gallery", folder / "train", "--gallery-cache", folder / "cache"]
    for source in (folder / "run" / "last.ckpt", tmp_path / "release"):
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
        monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
        capsys.readouterr()
        run("predict", photo, "--checkpoint", source, *places)
        assert capsys.readouterr().out == expected
    assert "tiny-image-path" in known


def test_embed_names_a_broken_photo(folder, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes((folder / "photos" / "test" / "00000.jpg").read_bytes()[:300])
    table = tmp_path / "photos.csv"
    table.write_text("path,latitude,longitude\nbroken.jpg,1,2\n")
    capsys.readouterr()
    embed = ["embed", table, tmp_path / "out", "--backbone", folder / "tiny-image-path.json"]
    assert main([str(a) for a in [*embed, "--pretrained", "none", "--workers", 0]]) == 2
    assert "broken.jpg" in capsys.readouterr().err.strip().splitlines()[-1]


def test_predict_in_one_line(folder, predict, tmp_path):
    photo = folder / "photos" / "test" / "00000.jpg"
    (tmp_path / "file").write_text("")
    for arguments, word in (
        (["--top-k", 0], "--top-k: wanted 1 to 400"),
        (["--top-k", 401], "got 401"),
        (["--batch-size", 0], "--batch-size"),
        (["--density", 5], "--density: wanted --format json or geojson"),
        (["--density", 0, "--format", "json"], "degrees"),
        (["--device", "abacus"], "abacus"),
        (["--out", tmp_path / "file" / "x.csv"], "file"),
    ):
        code, _, (line,) = predict(photo, *arguments)
        assert code == 2
        assert word in line


def test_a_checkpoint_of_another_architecture_is_one_line(predict, tmp_path):
    write_store(tmp_path / "wider", n=4)
    code, _, (line,) = predict(tmp_path / "wider")
    assert code == 2
    assert "embeddings of 16 numbers, wanted the 32 of" in line


def test_the_photos_embedding_is_the_stored_one(folder):
    """What predict computes of a file is what embed stored of it."""
    from geoclip.image_encoder import ImageEncoder

    open_clip.add_model_config(folder / "tiny-image-path.json")
    encoder = ImageEncoder("tiny-image-path", None)
    image = Image.open(folder / "photos" / "train" / "00007.jpg").convert("RGB")
    embedding = encoder.embed(encoder.preprocess_image(image))[0].numpy()
    stored = EmbeddingStore.open(folder / "train").read([7])[0]
    np.testing.assert_allclose(stored, embedding, rtol=2e-3, atol=2e-3 * np.abs(embedding).max())
