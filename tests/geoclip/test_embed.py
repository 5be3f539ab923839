import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import socket
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
from geoclip.views import AugmentedViews

from .dataset_trees import write_osv5m
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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(world, run):
    """Forks processes with the environment that torchrun gives its own; returns their ids."""
    address = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = []
    for rank in range(world):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                torch.set_num_threads(1)
                os.environ.update({**address, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                run()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def test_many_processes_killed_and_gone_on_with_by_fewer(tmp_path, encoder, monkeypatch):
    photos = read_photos(csv := render_photos(tmp_path / "photos", 150, size=200))
    for i in (70, 149):
        (csv.parent / f"{i:05d}.jpg").write_bytes(b"")
    out = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr("geoclip.embed._FLUSH_SECONDS", 0.0)  # a shard for each photo
        pids = start_ranks(3, lambda: embed(photos, out, encoder, batch_size=1, max_broken=2))
    deadline = time.monotonic() + 60
    while not all((out / f"shard-{rank}00002.parquet").exists() for rank in ("", "0001-", "0002-")):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0), "one ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # what a kill between a shard's two files leaves behind
    shutil.copy(out / "shard-0001-00000.npy", out / "shard-0002-00099.npy")
    done = EmbeddingWriter(out, 24, info=INFO).rows_done
    assert 9 <= done < 148
    with pytest.raises(ValueError, match="unfinished"):
        EmbeddingStore.open(out)

    for pid in start_ranks(2, lambda: embed(photos, out, encoder, max_broken=2)):
        assert os.waitpid(pid, 0)[1] == 0
    store = EmbeddingStore.open(out)
    kept = [i for i in range(150) if i not in (70, 149)]
    rows = [int(photo.removeprefix("photo-")) for photo in store.ids.to_pylist()]
    assert sorted(rows) == kept
    np.testing.assert_array_equal(store.latlon, photos.latlon[rows])
    whole = embed(photos, tmp_path / "whole", encoder, max_broken=2)
    order = [kept.index(row) for row in rows]
    np.testing.assert_allclose(store.read(range(148)), whole.read(order), rtol=1e-3, atol=1e-3)
    lines = (out / "broken.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == [
        str(csv.parent / f"{i:05d}.jpg") for i in (70, 149)
    ]
    listed = {shard["name"] for shard in json.loads((out / "meta.json").read_text())["shards"]}
    files = {f"{name}.{kind}" for name in listed for kind in ("npy", "parquet")}
    locks = {".writer-0000", ".writer-0001", ".writer-0002"}
    assert {file.name for file in out.iterdir()} == {"meta.json", "broken.txt", *files, *locks}


def test_the_limit_of_broken_images_is_that_of_all_processes(csv, tmp_path, encoder):
    spoil(csv.parent)  # in both halves of the list
    photos = read_photos(csv)
    pids = start_ranks(2, lambda: embed(photos, tmp_path / "store", encoder, batch_size=1, max_broken=2))
    while sum(pid != 0 for pid in pids) == 2:  # one gives up; torchrun would end the other
        ended, status = os.waitpid(-1, 0)
        assert status
        pids.remove(ended)
    os.kill(pids[0], signal.SIGKILL)
    os.waitpid(pids[0], 0)
    with pytest.raises(ValueError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "store")


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


def test_a_list_with_longitudes_up_to_360_goes_on_with_its_store(rendered, tmp_path, encoder):
    listed = read_photos(rendered)
    east = np.column_stack([listed.latlon[:, 0], listed.latlon[:, 1] % 360])
    photos = dataclasses.replace(listed, latlon=east)
    embed(photos.take(np.arange(10)), tmp_path / "store", encoder)
    store = embed(photos, tmp_path / "store", encoder)
    np.testing.assert_allclose(store.latlon, listed.latlon, rtol=0, atol=1e-9)


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
        ({"views": -1}, "views is -1, wanted at least 0"),
        ({"views": 2, "tencrop": True}, "tencrop: wanted without views.*views=2"),
        ({"precision": "fp8"}, "precision: wanted auto, fp32, fp16 or bf16, got 'fp8'"),
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


@pytest.mark.parametrize(("part", "fits"), [(0.076, True), (0.074, False)])
def test_broken_images_may_be_a_part_of_all(csv, tmp_path, encoder, part, fits):
    spoil(csv.parent)
    photos = read_photos(csv)
    if fits:
        assert len(embed(photos, tmp_path / "store", encoder, max_broken=part)) == 37
    else:
        with pytest.raises(ValueError, match="3 broken so far, max_broken is 2"):
            embed(photos, tmp_path / "store", encoder, max_broken=part)


def test_views_are_those_of_the_photo_whoever_makes_them(rendered, tmp_path, encoder):
    photos = read_photos(rendered)
    store = embed(photos, tmp_path / "store", encoder, views=3, seed=5, batch_size=9)
    assert store.views == 3
    assert store.info == {**INFO, "pictures": "augmented", "seed": 5}
    rows = np.arange(40)
    plain = one_by_one(photos, encoder)
    np.testing.assert_allclose(store.read(rows), plain, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(store.read(rows, 0), store.read(rows))
    views = np.stack([store.read(rows, view) for view in (1, 2, 3)])
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(views[first] - views[second]).max(axis=1).min() > 1e-3
    assert np.abs(views - plain).max(axis=2).min() > 1e-3
    # nearer to its own photo than to another
    assert np.linalg.norm(views - plain, axis=2).mean() < np.linalg.norm(views - plain[::-1], axis=2).mean()
    # begun with some of the photos and other workers, and gone on with the rest
    embed(photos.take(np.arange(13)), tmp_path / "two", encoder, views=3, seed=5, workers=2)
    again = embed(photos, tmp_path / "two", encoder, views=3, seed=5, batch_size=4)
    for view in (1, 3):
        np.testing.assert_allclose(again.read(rows, view), views[view - 1], rtol=1e-3, atol=1e-3)
    mixed = store.read(rows, rows % 4)
    np.testing.assert_array_equal(mixed[rows % 4 == 0], store.read(rows)[rows % 4 == 0])
    np.testing.assert_array_equal(mixed[rows % 4 == 2], views[1][rows % 4 == 2])
    with pytest.raises(ValueError, match="seed 5 there and 6 here"):
        embed(photos, tmp_path / "two", encoder, views=3, seed=6)
    with pytest.raises(ValueError, match="views: 4 to 4, wanted 0 to 3"):
        store.read([1], 4)


def test_views_leave_the_random_state_alone(rendered, encoder):
    views = AugmentedViews(encoder.preprocess, encoder.preprocess_config, 2, seed=0)
    photo = Image.open(rendered.parent / "00000.jpg")
    state = torch.random.get_rng_state()
    made = views(photo, "photo-0")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(views(photo, "photo-0"), made)
    assert not torch.equal(views(photo, "photo-1")[1:], made[1:])


def test_ten_crops_and_their_mean(rendered, tmp_path, encoder):
    photos = read_photos(rendered).take(np.arange(6))
    store = embed(photos, tmp_path / "store", encoder, tencrop=True)
    assert (store.views, store.info) == (10, {**INFO, "pictures": "tencrop"})
    mean = torch.tensor(encoder.preprocess_config["mean"])[:, None, None]
    std = torch.tensor(encoder.preprocess_config["std"])[:, None, None]
    for row, path in enumerate(photos.images.paths.to_pylist()):
        # by Pillow and NumPy alone; 37 = 32 · 256/224
        pixels = np.asarray(Image.open(path).convert("RGB").resize((37, 37), Image.Resampling.BICUBIC))
        corners = [pixels[:32, :32], pixels[:32, 5:], pixels[5:, :32], pixels[5:, 5:], pixels[2:34, 2:34]]
        mirrored = [*corners[1::-1], *corners[3:1:-1], pixels[2:34, 3:35]]  # the middle of the mirrored photo
        crops = np.stack([*corners, *(crop[:, ::-1] for crop in mirrored)])
        images = (torch.from_numpy(crops.copy()).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = encoder.embed(images.float()).numpy()
        crops = np.stack([store.read([row], view)[0] for view in range(1, 11)])
        np.testing.assert_allclose(crops, expected, rtol=5e-3, atol=5e-3)
        np.testing.assert_allclose(store.read([row])[0], expected.mean(axis=0), rtol=5e-3, atol=5e-3)


def test_reduced_precision_stays_near(rendered, tmp_path, encoder):
    photos = read_photos(rendered)
    exact = embed(photos, tmp_path / "exact", encoder, precision="fp32").read(range(40))
    rounded = embed(photos, tmp_path / "rounded", encoder, precision="bf16").read(range(40))
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.03


def test_zips_areas_and_the_split_reach_the_store(tmp_path, encoder):
    latlon = write_osv5m(tmp_path / "osv5m", 23)
    photos = read_photos(tmp_path / "osv5m")
    store = embed(photos, tmp_path / "store", encoder, workers=2, batch_size=5)
    assert store.ids.to_pylist() == photos.ids.to_pylist()
    assert store.info == {**INFO, "dataset": "osv5m", "split": "train"}
    np.testing.assert_array_equal(store.latlon, latlon)
    assert {name: c.to_pylist() for name, c in store.areas.items()} == {
        name: c.to_pylist() for name, c in photos.areas.items()
    }
    images = [encoder.preprocess(Image.open(io.BytesIO(photos.images.read(i)))) for i in range(23)]
    np.testing.assert_allclose(
        store.read(range(23)), encoder.embed(torch.stack(images)).numpy(), rtol=1e-3, atol=1e-3
    )


def test_a_full_disk_stops_in_one_line_and_nothing_written_is_lost(rendered, tmp_path, encoder, monkeypatch):
    """RLIMIT_FSIZE refuses a write in its middle, as a full disk does."""
    photos = read_photos(rendered)
    monkeypatch.setattr("geoclip.embed._FLUSH_SECONDS", 0.0)
    embed(photos.take(np.arange(12)), tmp_path / "store", encoder, batch_size=6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*store/\S+: File too large$"):
            embed(photos, tmp_path / "store", encoder, batch_size=28)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert EmbeddingWriter(tmp_path / "store", 24, info=INFO).rows_done == 12
    store = embed(photos, tmp_path / "store", encoder)
    assert store.ids.to_pylist() == photos.ids.to_pylist()
    np.testing.assert_allclose(store.read(range(40)), one_by_one(photos, encoder), rtol=1e-3, atol=1e-3)
