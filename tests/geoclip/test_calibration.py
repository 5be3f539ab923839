"""The calibrated scale is the one that photos were drawn with, and that a search in float64 finds."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from geoclip.calibration import calibrated_logit_scale, coverage
from geoclip.cli import main
from geoclip.evaluation import pictures_of
from geoclip.gallery import Gallery
from geoclip.metrics import great_circle_km
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon
from .small_world import small_model, write_settings, write_store


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize("scale", [15.0, 50.0])
def test_the_scale_of_the_draw_is_found(model, scale):
    places, embeddings = random_latlon(90), torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    gallery = Gallery(model, places)
    with torch.no_grad():
        cosine = model(embeddings, torch.from_numpy(places).float()) / model.logit_scale.exp()
    cosine = cosine.double().numpy()
    gumbel = np.random.default_rng(0).gumbel(size=cosine.shape)
    own = (scale * cosine + gumbel).argmax(axis=1)  # a draw from the softmax
    # not quite at the gallery's place
    near = places[own] + np.random.default_rng(1).normal(0, 1e-4, (3000, 2))
    found = calibrated_logit_scale(gallery, embeddings, near)

    def mean_surprise(s):
        logits = s * cosine
        highest = logits.max(axis=1)
        return np.mean(
            highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - logits[np.arange(3000), own]
        )

    best = minimize_scalar(mean_surprise, bounds=(1, 200), method="bounded", options={"xatol": 1e-4}).x
    assert found == pytest.approx(best, rel=0.01)
    assert found == pytest.approx(scale, rel=0.1)
    # all pictures of a photo alike: as with one
    views = embeddings[:, None].expand(-1, 3, -1)
    assert calibrated_logit_scale(gallery, views, near) == pytest.approx(found, rel=0.01)
    located = Gallery(model, places, logit_scale=found).locate(embeddings)
    error_km = great_circle_km(located.latlon[:, 0], near)
    covered = coverage(gallery, embeddings, near, found)
    np.testing.assert_allclose(covered, (error_km[:, None] <= located.radius_km).mean(axis=0), atol=1e-3)
    assert gallery.logit_scale != found


def test_calibrated_radii_cover_their_share(model):
    places = random_latlon(20_000)  # so many that a radius holds hardly more than its share
    embeddings = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1))
    gallery = Gallery(model, places)
    with torch.no_grad():
        cosine = model(embeddings, torch.from_numpy(places).float()) / model.logit_scale.exp()
    gumbel = np.random.default_rng(2).gumbel(size=cosine.shape)
    truth = places[(12 * cosine.double().numpy() + gumbel).argmax(axis=1)]
    shares = (0.2, 0.5, 0.9)
    assert coverage(gallery, embeddings, truth, 12.0, shares) == pytest.approx(shares, abs=0.03)
    assert max(coverage(gallery, embeddings, truth, 100.0, shares)) < 0.8  # too sure of itself
    with pytest.raises(ValueError, match="logit_scale: wanted a finite number above 0, got 0"):
        coverage(gallery, embeddings, truth, 0.0)


def test_a_gallery_uses_the_scale_it_is_given(model):
    places, embeddings = random_latlon(200), torch.randn(9, 16)
    places[:60] = places[0] + np.random.default_rng(1).normal(0, 0.05, (60, 2))
    sharp = Gallery(model, places, logit_scale=80.0)
    with torch.no_grad():
        cosine = model(embeddings, torch.from_numpy(places).float()) / model.logit_scale.exp()
    wanted = (80 * cosine).softmax(dim=1).topk(3, dim=1).values
    np.testing.assert_allclose(sharp.locate(embeddings, k=3).probability, wanted, rtol=1e-4)
    wide = VariogramModel("exponential", 0.0, 1.0, 300.0)
    usual = Gallery(model, places)
    for variogram in (None, wide):  # the scale of one call
        once = usual.locate(embeddings, k=3, logit_scale=80.0, variogram=variogram)
        always = sharp.locate(embeddings, k=3, variogram=variogram)
        np.testing.assert_array_equal(once.latlon, always.latlon)
        np.testing.assert_array_equal(once.probability, always.probability)
    assert usual.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    flat = Gallery(model, places, logit_scale=1e-3).place(embeddings, variogram=wide)[0]
    certain = Gallery(model, places, logit_scale=1e5).place(embeddings, variogram=wide)[0]
    np.testing.assert_array_equal(certain, usual.place(embeddings)[0])  # nothing else has a probability
    assert (flat != certain).any()
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="logit_scale: wanted a finite number above 0, got"):
            Gallery(model, places, logit_scale=bad)


def test_eval_calibrates_and_predict_takes_it(tmp_path, capsys):
    assert main(["fit", "--config", str(write_settings(tmp_path, steps=12))]) == 0
    test = write_store(tmp_path / "test", n=40)
    checkpoint, out = str(tmp_path / "run" / "last.ckpt"), tmp_path / "metrics.json"
    gallery = ["--gallery", str(tmp_path / "train"), "--gallery-cache", str(tmp_path / "cache")]
    common = [checkpoint, str(tmp_path / "test"), *gallery, "--out", str(out), "--bootstrap", "10"]
    capsys.readouterr()
    assert main(["eval", *common, "--calibrate"]) == 0
    captured, written = capsys.readouterr(), json.loads(out.read_text())
    calibration = written["calibration"]
    found = calibration["logit_scale"]
    assert f"  --logit-scale {found:.4g}   (used here: {written['logit_scale']:.4g})\n" in captured.out
    assert "the radius that holds 90% of the probability covers " in captured.out
    assert "warning: 40 photos calibrate poorly; wanted 200 or more" in captured.err
    assert 1 <= found <= 1e4
    assert calibration["photos"] == 40

    def probability(*options):
        words = ["predict", str(tmp_path / "test"), "--checkpoint", checkpoint, "--format", "json", *options]
        assert main([*words, *gallery]) == 0
        first, *_ = json.loads(capsys.readouterr().out)
        return first["places"][0]["probability"]

    assert main(["eval", *common, "--logit-scale", f"{found}"]) == 0
    again = json.loads(out.read_text())
    assert again["logit_scale"] == found != written["logit_scale"]
    assert again["metrics"] == written["metrics"]  # the order by cosines has not changed
    assert "calibration" not in again
    capsys.readouterr()
    assert probability("--logit-scale", "1e4") > 0.5 > probability("--logit-scale", "1e-4")
    assert pictures_of(test, np.arange(3)).shape == (3, 16)
    assert main(
        ["predict", str(tmp_path / "test"), "--checkpoint", checkpoint, *gallery, "--logit-scale", "0"]
    )
    assert "logit_scale: wanted a finite number above 0, got 0.0" in capsys.readouterr().err
