"""Photos to places for real, with the commands a user types: embed, variogram, fit, eval, predict."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from geoclip.cli import main
from geoclip.embedding_store import EmbeddingStore
from geoclip.metrics import great_circle_km
from semivario_kernels import EmpiricalVariogram, VariogramModel

from .rendered_photos import random_latlon, render_photos

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
    assert store.info == {"backbone": "tiny-image-path", "pretrained": None}


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


def test_a_photo_is_placed(folder, capsys):
    photos = [folder / "photos" / "test" / f"{i:05d}.jpg" for i in range(3)]
    gallery = ["--gallery", folder / "train"]
    run("predict", *photos, "--checkpoint", folder / "run" / "last.ckpt", *gallery, "--top-k", 4,
        "--backbone", folder / "tiny-image-path.json")  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["photo"] for row in rows] == [str(photo) for photo in photos for _ in range(4)]
    places = EmbeddingStore.open(folder / "train").latlon
    for i in range(3):
        mine = rows[4 * i : 4 * i + 4]
        probability = np.array([float(row["probability"]) for row in mine])
        assert (np.diff(probability) <= 0).all()
        assert 1 / 400 < probability[0] < 1
        assert probability.sum() <= 1
        for row in mine:
            place = np.array([[float(row["latitude"]), float(row["longitude"])]])
            assert np.abs(places - place).sum(axis=1).min() < 1e-5


def test_predict_agrees_with_eval(folder, tmp_path, capsys):
    """The top place of every test photo, asked for as files, has the error that eval reports."""
    checkpoint, gallery = folder / "run" / "last.ckpt", ["--gallery", folder / "train"]
    run("eval", checkpoint, folder / "test", *gallery, "--out", tmp_path / "metrics.json")
    capsys.readouterr()
    photos = sorted((folder / "photos" / "test").glob("*.jpg"))
    run("predict", *photos, "--checkpoint", checkpoint, *gallery, "--top-k", 1,
        "--backbone", folder / "tiny-image-path.json")  # fmt: skip
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    predicted = np.array([[float(row["latitude"]), float(row["longitude"])] for row in rows])
    error = great_circle_km(predicted, random_latlon(60, 1))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    # embeddings are stored in half precision: a tie may fall the other way
    assert np.median(error) == pytest.approx(metrics["median_km"]["value"], rel=0.05)


def test_a_broken_photo_is_one_line(folder, tmp_path, capsys):
    checkpoint = ["--checkpoint", folder / "run" / "last.ckpt", "--backbone", folder / "tiny-image-path.json"]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((folder / "photos" / "test" / "00000.jpg").read_bytes()[:300])
    for photo, word in ((broken, "broken.jpg"), (tmp_path / "nowhere.jpg", "nowhere.jpg")):
        capsys.readouterr()
        assert main([str(a) for a in ["predict", photo, *checkpoint, "--gallery", folder / "train"]]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert len(error.strip().splitlines()) == 1
    table = tmp_path / "photos.csv"
    table.write_text("path,latitude,longitude\nbroken.jpg,1,2\n")
    capsys.readouterr()
    embed = ["embed", table, tmp_path / "out", "--backbone", folder / "tiny-image-path.json"]
    assert main([str(a) for a in [*embed, "--pretrained", "none", "--workers", 0]]) == 2
    assert "broken.jpg" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_photos_embedding_is_the_stored_one(folder):
    """What predict computes of a file is what embed stored of it."""
    import open_clip

    from geoclip.image_encoder import ImageEncoder

    open_clip.add_model_config(folder / "tiny-image-path.json")
    encoder = ImageEncoder("tiny-image-path", None)
    image = Image.open(folder / "photos" / "train" / "00007.jpg").convert("RGB")
    embedding = encoder.embed(encoder.preprocess_image(image))[0].numpy()
    stored = EmbeddingStore.open(folder / "train").read([7])[0]
    np.testing.assert_allclose(stored, embedding, rtol=2e-3, atol=2e-3 * np.abs(embedding).max())
