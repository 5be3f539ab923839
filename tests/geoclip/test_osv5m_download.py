"""`geoclip download osv5m` by the real client, against a hub on this machine."""

import shutil

import pytest

from geoclip.cli import main
from geoclip.datasets import read_photos

from .dataset_trees import jpeg, write_osv5m
from .fake_hub import fake_hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository with both splits; its address is where the client looks."""
    import huggingface_hub.constants

    write_osv5m(tmp_path / "hub", 30, parts=3, zipped=(0, 1, 2))
    write_osv5m(tmp_path / "hub", 8, "test", parts=2, zipped=(0, 1))
    (tmp_path / "hub" / "README.md").write_text("OSV-5M")
    (tmp_path / "hub" / "osv5m.py").write_text("raise SystemExit")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with fake_hub(tmp_path / "hub", "osv5m/osv5m") as (address, fetched):
        for module in (huggingface_hub.constants, huggingface_hub.hf_api):
            monkeypatch.setattr(module, "ENDPOINT", address, raising=False)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield fetched


def test_a_part_is_fetched_once_and_can_be_embedded(hub, tmp_path, capsys):
    command = ["download", "osv5m", str(tmp_path / "osv5m"), "--split", "train", "--parts", "0-1"]
    assert main(command) == 0
    assert "2 zips of train" in capsys.readouterr().out
    assert sorted(hub) == ["images/train/00.zip", "images/train/01.zip", "train.csv"]
    photos = read_photos(tmp_path / "osv5m")
    assert photos.images.present().tolist() == [i % 3 < 2 for i in range(30)]
    assert photos.images.read(4) == jpeg(photos.latlon[4])
    assert main(command) == 0
    assert len(hub) == 3
    assert main([*command[:3], "--split", "train", "--parts", "2"]) == 0
    assert sorted(hub)[2:] == ["images/train/02.zip", "train.csv"]


def test_what_the_hub_lacks_or_breaks(hub, tmp_path, capsys):
    out = tmp_path / "osv5m"

    def refused(*options):
        capsys.readouterr()
        assert main(["download", "osv5m", str(out), *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("geoclip")]
        assert len(lines) == 1
        return lines[0]

    assert "images/train/97.zip: revision main of osv5m/osv5m has no such file" in refused(
        "--split", "train", "--parts", "97"
    )
    assert "cannot download osv5m/osv5m" in refused("--revision", "nowhere")
    assert "parts: wanted some of 0 to 4" in refused("--split", "test", "--parts", "7")
    (tmp_path / "hub" / "images" / "test" / "00.zip").write_bytes(b"an error page")
    assert "00.zip: not a whole zip archive" in refused("--split", "test", "--parts", "0")
    shutil.rmtree(out)
    out.write_text("a file")
    refused("--split", "test", "--parts", "0")
