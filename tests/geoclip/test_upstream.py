import os
import subprocess
import sys
import zipfile

import pytest
import torch

from geoclip.upstream import UpstreamUnavailable, fetch_upstream, read_gallery


@pytest.fixture
def no_registry(monkeypatch):
    """Point pip at a closed port, past any configuration of this machine."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def upstream():
    try:
        return fetch_upstream()
    except UpstreamUnavailable as error:
        pytest.skip(str(error))


def test_files_are_there_and_a_second_call_needs_no_network(upstream, no_registry):
    again = fetch_upstream()
    assert again == upstream
    for path in (
        again.location_encoder_weights,
        again.image_head_weights,
        again.logit_scale_weights,
        again.gallery_csv,
    ):
        assert path.is_file(), path
    assert torch.load(again.logit_scale_weights, weights_only=True).item() == pytest.approx(3.6810, abs=1e-4)


def test_gallery_values(upstream):
    gallery = read_gallery()
    assert gallery.shape == (100_000, 2)
    assert gallery.dtype == torch.float64
    assert gallery[0].tolist() == [-50.943392, -72.935664]
    assert len(torch.unique(gallery, dim=0)) == 94_123
    assert len(torch.unique(gallery.float(), dim=0)) == 94_100  # what the encoder can tell apart
    assert gallery[:, 0].abs().max() <= 90
    assert gallery[:, 1].abs().max() <= 180


def test_the_cache_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "semivario-kernels" / "geoclip-1.3.0").mkdir(parents=True)
    assert fetch_upstream().folder == tmp_path / "semivario-kernels" / "geoclip-1.3.0"


def test_unreachable_registry_is_one_line_and_leaves_nothing(tmp_path, no_registry):
    with pytest.raises(UpstreamUnavailable, match=r"could not download geoclip==1\.3\.0: ERROR") as caught:
        fetch_upstream(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_wheel_of_the_same_name_is_refused(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "geoclip-1.3.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "geoclip-1.3.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: geoclip\nVersion: 1.3.0\n"
        )
        wheel.writestr("geoclip-1.3.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("geoclip-1.3.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(RuntimeError, match="SHA-256") as caught:
        fetch_upstream(tmp_path / "cache")
    assert not isinstance(caught.value, UpstreamUnavailable)
    assert list((tmp_path / "cache").iterdir()) == []


def test_own_gallery_file(tmp_path):
    csv = tmp_path / "places.csv"
    csv.write_text("LAT,LON\n1.5,-170.25\n\n-89,12\n")
    assert read_gallery(csv).tolist() == [[1.5, -170.25], [-89.0, 12.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LON,LAT\n1,2\n", "header is 'LON,LAT', wanted 'LAT,LON'"),
        ("LAT,LON\n", "no coordinates"),
        ("LAT,LON\n1,north\n", "two numbers in every row"),
        ("LAT,LON\n1\n", "two numbers in every row"),
    ],
)
def test_broken_gallery_file(tmp_path, text, message):
    csv = tmp_path / "places.csv"
    csv.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_gallery(csv)
    assert "places.csv" in str(caught.value)


def test_import_geoclip_is_light_and_its_names_are_lazy():
    code = """
import sys, geoclip
assert "torch" not in sys.modules and "open_clip" not in sys.modules
assert {"GeoCLIP", "ImageEncoder", "LocationEncoder"} <= set(dir(geoclip))
from geoclip import LocationEncoder
assert LocationEncoder.__module__ == "geoclip.location_encoder" and "open_clip" not in sys.modules
sys.modules["open_clip"] = None  # as if it were not installed
geoclip.ImageEncoder(None, embedding_dim=8)  # of cached embeddings
try:
    geoclip.ImageEncoder("ViT-B-32", pretrained=None)
except ModuleNotFoundError as error:
    assert "semivario-kernels[train]" in str(error) and error.name == "open_clip"
else:
    raise SystemExit("a backbone without open_clip")
assert not hasattr(geoclip, "Unknown")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
