"""Releases: what upstream geoclip 1.3.0 writes we read, what we write its own loader reads."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from geoclip import GeoCLIP, ImageEncoder, LocationEncoder
from geoclip.cli import main
from geoclip.fit import fit
from geoclip.upstream import UpstreamUnavailable, fetch_upstream

from .rendered_photos import random_latlon
from .small_world import embeddings_of, write_settings


@pytest.fixture(scope="module")
def upstream():
    try:
        return fetch_upstream()
    except UpstreamUnavailable as error:
        pytest.skip(str(error))


def by_upstream(upstream, folder, *releases):
    """What upstream's loader makes of releases below a folder; one that is not there it writes first."""
    script = Path(__file__).parent / "upstream_release.py"
    arguments = [upstream.folder, folder / "hub", folder, *(folder / name for name in releases)]
    command = [sys.executable, *map(str, [script, *arguments])]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert run.returncode == 0, run.stderr
    return [np.load(folder / f"{name}.npz") for name in releases]


def assert_computes(model, expected):
    model.eval()
    with torch.no_grad():
        images = model.image_encoder(torch.from_numpy(expected["embeddings"]))
        locations = model.location_encoder(torch.from_numpy(expected["latlon"]))
    np.testing.assert_allclose(images, expected["image_features"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(locations, expected["location_features"], rtol=1e-4, atol=1e-5)
    assert model.logit_scale.item() == expected["logit_scale"]
    np.testing.assert_array_equal(model.gps_gallery, expected["gallery"])


def test_releases_go_both_ways(upstream, tmp_path):
    (expected,) = by_upstream(upstream, tmp_path, "theirs")
    theirs = GeoCLIP.from_pretrained(str(tmp_path / "theirs"))
    assert theirs.location_encoder.sigma == [2, 8]
    assert (theirs.image_encoder.backbone, theirs.image_encoder.pretrained) == ("ViT-L-14", "openai")
    assert not theirs.training
    assert_computes(theirs, expected)
    theirs.save_pretrained(tmp_path / "again")
    official = GeoCLIP.from_upstream()  # names CLIP ViT-L/14 without loading it
    official.gps_gallery = official.gps_gallery[:1000]
    official.save_pretrained(tmp_path / "official")
    again, expected_official = by_upstream(upstream, tmp_path, "again", "official")
    for name in expected:
        np.testing.assert_array_equal(again[name], expected[name])
    assert_computes(official, expected_official)
    assert len(expected_official["gallery"]) == 1000
    assert expected_official["logits"].shape == (2, 3)  # through upstream's own image tower
    ours = GeoCLIP.from_pretrained(tmp_path / "official")
    for name, tensor in official.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor) or name.startswith("gps_queue")


def test_a_release_on_the_hub(upstream, tmp_path):
    GeoCLIP.from_upstream().save_pretrained(tmp_path / "models--some--one" / "snapshots" / ("a" * 40))
    options = {"revision": "a" * 40, "cache_dir": tmp_path, "local_files_only": True}
    assert len(GeoCLIP.from_pretrained("some/one", **options).gps_gallery) == 100_000
    with pytest.raises(FileNotFoundError, match="some/other: no such folder, and none from the Hub"):
        GeoCLIP.from_pretrained("some/other", **options)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return GeoCLIP(
        False,
        8,
        image_encoder=ImageEncoder(None, embedding_dim=12, output_dim=6),
        location_encoder=LocationEncoder([1, 16.5], False, width=20, encoded_size=5, output_dim=6),
        gallery=torch.from_numpy(random_latlon(30)),
    )


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_any_architecture_comes_back(small, head, tmp_path):
    if head == "linear":
        small.image_encoder.mlp = torch.nn.Sequential(torch.nn.Linear(12, 6))
    small.save_pretrained(tmp_path / "one")
    small.save_pretrained(tmp_path / "one")  # over itself
    again = GeoCLIP.from_pretrained(tmp_path / "one")
    embeddings, latlon = torch.randn(4, 12), torch.from_numpy(random_latlon(9)).float()
    assert torch.equal(again(embeddings, latlon), small.eval()(embeddings, latlon))
    assert torch.equal(again.gps_gallery, small.gps_gallery)
    assert again.image_encoder.backbone is None
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.json", "gallery.csv", "model.safetensors"
    ]  # fmt: skip


def test_the_backbone_is_named(tmp_path):
    torch.manual_seed(0)
    encoder = ImageEncoder("ViT-B-32", None, output_dim=6)
    location = LocationEncoder([1], False, width=8, encoded_size=4, output_dim=6)
    model = GeoCLIP(False, image_encoder=encoder, location_encoder=location, gallery=torch.zeros(1, 2))
    model.save_pretrained(tmp_path / "b32")
    config = json.loads((tmp_path / "b32" / "config.json").read_text())
    assert config["open_clip"] == {"model": "ViT-B-32", "pretrained": None}
    assert "backbone" not in config  # upstream has no such backbone: it says so instead of taking another one
    again = GeoCLIP.from_pretrained(tmp_path / "b32")
    assert (again.image_encoder.backbone, again.image_encoder.pretrained) == ("ViT-B-32", None)
    assert "ViT-B-32" in open_clip.list_models()


def test_a_location_encoder_alone(small, tmp_path):
    small.location_encoder.save_pretrained(tmp_path / "places")
    again = LocationEncoder.from_pretrained(tmp_path / "places")
    latlon = torch.from_numpy(random_latlon(9)).float()
    assert torch.equal(again(latlon), small.location_encoder(latlon))
    assert not again.training
    with pytest.raises(ValueError, match="'geoclip-location-encoder'"):
        GeoCLIP.from_pretrained(tmp_path / "places")
    small.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="'geoclip-geolocation'"):
        LocationEncoder.from_pretrained(tmp_path / "whole")


def damaged(folder, how):
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no json":
        (folder / "config.json").write_text("{")
    elif how == "a list":
        (folder / "config.json").write_text("[1]")
    elif how == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    elif how == "no tensors":
        (folder / "model.safetensors").unlink()
    elif how == "no gallery":
        (folder / "gallery.csv").unlink()
    elif how == "bad gallery":
        (folder / "gallery.csv").write_text("LAT,LON\n99,nan\n")
    elif how in ("missing", "more", "shape", "nothing"):
        name = "location_encoder.LocEnc1.head.0.bias"
        if how == "missing":
            del tensors[name]
        elif how == "more":
            tensors["location_encoder.LocEnc2.head.0.bias"] = torch.zeros(6)
        elif how == "nothing":
            tensors = {"weight": torch.zeros(2)}
        else:
            tensors[name] = torch.zeros(7)
        save_file(tensors, folder / "model.safetensors")
    else:
        (folder / "config.json").write_text(json.dumps({**config, **how}))


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("no config", "no config.json"),
        ("no json", "config.json is damaged"),
        ("a list", "got None"),
        ("cut", "model.safetensors is damaged"),
        ("no tensors", "no model.safetensors"),
        ("no gallery", "no gallery.csv"),
        ("bad gallery", "gallery.csv: row 1"),
        ("missing", "LocEnc1.head.0.bias"),
        ("more", "LocEnc2"),
        ("shape", "LocEnc1.head.0.bias"),
        ("nothing", "holds no GeoCLIP"),
        ({"format_version": 2}, "format_version"),
        ({"format_version": True}, "format_version"),
        ({"model_type": "clip"}, "'clip'"),
        ({"sigma": []}, "sigma"),
        ({"sigma": [1, 16, 256]}, "3 scales"),
        ({"sigma": ["1", "2"]}, "sigma"),
        ({"gallery_file": "../gallery.csv"}, "gallery_file"),
    ],
)
def test_a_damaged_release_is_one_line(small, how, word, tmp_path):
    small.save_pretrained(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(ValueError, match=word.replace(".", r"\.")) as caught:
        GeoCLIP.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_there_is_no_such_folder(tmp_path):
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            GeoCLIP.from_pretrained(source)


def test_export_predicts_like_the_checkpoint(tmp_path, capsys):
    checkpoint = fit(["--config", str(write_settings(tmp_path, steps=2))])
    gallery = ["--gallery", str(tmp_path / "train")]
    assert main(["export", str(checkpoint), str(tmp_path / "release"), *gallery]) == 0
    assert "300 places" in capsys.readouterr().out
    cache = [*gallery, "--gallery-cache", str(tmp_path / "cache")]
    outputs = []
    for source in (checkpoint, tmp_path / "release"):
        assert main(["predict", str(tmp_path / "train"), "--checkpoint", str(source), *cache]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 1 + 5 * 300
    model = GeoCLIP.from_pretrained(tmp_path / "release")
    latlon = random_latlon(3)
    with torch.no_grad():
        assert model(torch.from_numpy(embeddings_of(latlon)).float(), model.gps_gallery).shape == (3, 300)
    assert main(["export", str(tmp_path / "nowhere.ckpt"), str(tmp_path / "release"), *gallery]) == 2
    assert "nowhere.ckpt" in capsys.readouterr().err
