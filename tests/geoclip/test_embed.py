import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image

from geoclip.datasets import read_photos
from geoclip.embed import embed_photos
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.image_encoder import ImageEncoder
from geoclip.image_files import PathFiles
from geoclip.photos import PhotoList

from .rendered_photos import render_photos

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
INFO = {"backbone": "tiny-embed", "pretrained": None}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-embed.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return ImageEncoder("tiny-embed", None)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The CSV of 40 photos."""
    return render_photos(tmp_path_factory.mktemp("photos") / "all", 40)


@pytest.fixture
def csv(rendered, tmp_path):
    """The same in a folder that the test may spoil."""
    return Path(shutil.copytree(rendered.parent, tmp_path / "photos")) / rendered.name


def embed(photos, out, encoder, **kwargs):
    kwargs = {"workers": 0, "progress": False, "batch_size": 7, **kwargs}
    return embed_photos(photos, out, image_encoder=encoder, **kwargs)


def one_by_one(photos, encoder):
    images = [encoder.preprocess(Image.open(path).convert("RGB")) for path in photos.images.paths.to_pylist()]
    return torch.cat([encoder.embed(image[None]) for image in images]).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_store_holds_what_the_encoder_gives(rendered, tmp_path, encoder, workers):
    photos = read_photos(rendered)
    store = embed(photos, tmp_path / "store", encoder, workers=workers)
    assert store.ids.to_pylist() == photos.ids.to_pylist()
    np.testing.assert_array_equal(store.latlon, photos.latlon)
    assert store.info == INFO
    np.testing.assert_allclose(store.read(np.arange(40)), one_by_one(photos, encoder), rtol=1e-3, atol=1e-3)
    assert not (tmp_path / "store" / "broken.txt").exists()
    # the comparison above would mean little if all photos were embedded alike
    assert np.std(store.all().astype(np.float32), axis=0).min() > 0.01


def test_a_finished_store_is_not_embedded_again_and_a_longer_list_is_added(rendered, tmp_path, encoder):
    photos = read_photos(rendered)
    first = photos.take(np.arange(25))
    embed(first, tmp_path / "store", encoder)
    gone = pa.array(["/nowhere.jpg"] * 25, pa.large_string())
    unread = PhotoList(first.ids, first.latlon, PathFiles(gone))
    assert len(embed(unread, tmp_path / "store", encoder)) == 25
    longer = PathFiles(pa.concat_arrays([gone, photos.images.paths[25:]]))
    store = embed(PhotoList(photos.ids, photos.latlon, longer), tmp_path / "store", encoder)
    assert store.ids.to_pylist() == photos.ids.to_pylist()
    np.testing.assert_allclose(store.read(np.arange(40)), one_by_one(photos, encoder), rtol=1e-3, atol=1e-3)


SCRIPT = """
import sys, open_clip
from geoclip import embed, embedding_store
from geoclip.image_encoder import ImageEncoder
from geoclip.datasets import read_photos

csv, out, models = sys.argv[1:]
open_clip.add_model_config(models)
embed._FLUSH_SECONDS = 0.0  # a shard for each batch
embed.embed_photos(
    read_photos(csv), out, image_encoder=ImageEncoder("tiny-embed", None),
    batch_size=1, workers=1, progress=False,
)
"""


def test_kill_9_then_the_same_command_again(tmp_path, encoder):
    models, out = tmp_path / "models", tmp_path / "store"
    models.mkdir()
    (models / "tiny-embed.json").write_text(json.dumps(TINY))
    photos = read_photos(csv := render_photos(tmp_path / "photos", 300, size=400))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SCRIPT, str(csv), str(out), str(models)]
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 60
    while not (out / "shard-00004.parquet").exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = EmbeddingWriter(out, 24, info=INFO).rows_done
    assert 4 <= done < 300
    with pytest.raises(ValueError, match="unfinished"):
        EmbeddingStore.open(out)
    store = embed(photos, out, encoder)
    assert store.ids.to_pylist() == photos.ids.to_pylist()
    whole = embed(photos, tmp_path / "whole", encoder)
    np.testing.assert_allclose(store.read(range(300)), whole.read(range(300)), rtol=1e-3, atol=1e-3)


def spoil(folder):
    """Three ways a file can be no photo."""
    (folder / "00004.jpg").unlink()
    (folder / "00009.jpg").write_bytes(b"")
    whole = (folder / "00021.jpg").read_bytes()
    (folder / "00021.jpg").write_bytes(whole[: len(whole) // 2])
    return [4, 9, 21]


def test_the_first_broken_image_stops_by_default_and_nothing_done_is_lost(csv, tmp_path, encoder):
    spoil(csv.parent)
    with pytest.raises(ValueError, match=r"00004\.jpg.*1 broken so far, max_broken is 0") as caught:
        embed(read_photos(csv), tmp_path / "store", encoder, batch_size=2)
    assert "\n" not in str(caught.value)
    writer = EmbeddingWriter(tmp_path / "store", 24, info=INFO)
    assert writer.finished().ids.to_pylist() == [f"photo-{i}" for i in (0, 1, 2, 3, 5)]
    assert not writer.complete


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_listed_and_skipped(csv, tmp_path, encoder, workers):
    broken = spoil(csv.parent)
    photos = read_photos(csv)
    store = embed(photos, tmp_path / "store", encoder, max_broken=3, workers=workers)
    kept = [i for i in range(40) if i not in broken]
    assert store.ids.to_pylist() == [f"photo-{i}" for i in kept]
    np.testing.assert_array_equal(store.latlon, photos.latlon[kept])
    lines = (tmp_path / "store" / "broken.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(csv.parent / f"{i:05d}.jpg") for i in broken]
    assert all(line.split("\t")[1] for line in lines)


def test_one_broken_image_too_many_then_a_mended_one(csv, tmp_path, encoder, rendered):
    spoil(csv.parent)
    photos = read_photos(csv)
    with pytest.raises(ValueError, match=r"00021\.jpg.*3 broken so far, max_broken is 2"):
        embed(photos, tmp_path / "store", encoder, max_broken=2)
    assert len((tmp_path / "store" / "broken.txt").read_text().splitlines()) == 3
    shutil.copy(rendered.parent / "00009.jpg", csv.parent)
    store = embed(photos, tmp_path / "store", encoder, max_broken=2)
    assert len((tmp_path / "store" / "broken.txt").read_text().splitlines()) == 2
    # those that an earlier run had to leave out come after its rows
    ids = store.ids.to_pylist()
    assert sorted(ids) == sorted(f"photo-{i}" for i in range(40) if i not in (4, 21))
    expected = one_by_one(read_photos(rendered), encoder)
    rows = [int(i.removeprefix("photo-")) for i in ids]
    np.testing.assert_allclose(store.read(np.arange(38)), expected[rows], rtol=1e-3, atol=1e-3)


def test_a_whole_batch_of_broken_images(csv, tmp_path, encoder):
    for i in range(5):
        (csv.parent / f"{i:05d}.jpg").write_text("no image")
    store = embed(read_photos(csv), tmp_path / "store", encoder, max_broken=5, batch_size=5)
    assert len(store) == 35


def test_a_store_of_other_photos_is_refused(rendered, tmp_path, encoder):
    photos = read_photos(rendered)
    embed(photos, tmp_path / "store", encoder)
    fewer = photos.take(np.arange(1, 40))
    with pytest.raises(ValueError, match="holds other photos, 'photo-0' for one"):
        embed(fewer, tmp_path / "store", encoder)
    moved = photos.latlon.copy()
    moved[17, 1] += 1e-6
    with pytest.raises(ValueError, match="has another position for 'photo-17'"):
        embed(PhotoList(photos.ids, moved, photos.images), tmp_path / "store", encoder)
    embed(photos, tmp_path / "store", encoder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch_size": 0}, "batch_size is 0, wanted at least 1"),
        ({"max_broken": -1}, "max_broken is -1, wanted at least 0"),
        ({"workers": -1}, "workers is -1, wanted at least 0"),
    ],
)
def test_bad_arguments(rendered, tmp_path, encoder, change, match):
    with pytest.raises(ValueError, match=match):
        embed(read_photos(rendered), tmp_path / "store", encoder, **change)
    assert not (tmp_path / "store").exists()


def test_an_encoder_without_backbone_makes_no_folder(rendered, tmp_path):
    with pytest.raises(ValueError, match="no backbone"):
        embed(read_photos(rendered), tmp_path / "store", ImageEncoder(None, embedding_dim=24))
    assert not (tmp_path / "store").exists()


def test_the_progress_bar_counts_images_and_can_be_switched_off(rendered, tmp_path, encoder, capsys):
    photos = read_photos(rendered)
    embed(photos, tmp_path / "quiet", encoder)
    assert capsys.readouterr() == ("", "")
    embed(photos, tmp_path / "shown", encoder, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "40/40" in shown.err
    assert "images/s" in shown.err
