import io
import json
import multiprocessing
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image

from geoclip.datasets import read_photos
from geoclip.datasets.zip_directory import read_zip_directory
from geoclip.image_encoder import read_image
from geoclip.image_files import _HANDLES
from geoclip.photos import AREAS

from .dataset_trees import PLACES365_HEADER, jpeg, osv5m_ids, write_osv5m, write_places365
from .rendered_photos import random_latlon


@pytest.fixture(scope="module")
def osv5m(tmp_path_factory):
    folder = tmp_path_factory.mktemp("osv5m")
    write_osv5m(folder, 31)
    write_osv5m(folder, 11, "test", parts=2, zipped=(), seed=1)
    return folder


def test_osv5m_from_zips_and_folders(osv5m):
    photos = read_photos(osv5m)
    assert (photos.dataset, photos.split) == ("osv5m", "train")
    assert photos.ids.to_pylist() == osv5m_ids(31)
    np.testing.assert_array_equal(photos.latlon, random_latlon(31))
    for i in range(31):
        assert photos.images.read(i) == jpeg(photos.latlon[i])
    assert photos.images.name(0) == f"{osv5m}/images/train/00.zip/{osv5m_ids(1)[0]}"
    assert photos.images.name(2) == f"{osv5m}/images/train/02/{osv5m_ids(3)[2]}.jpg"
    assert photos.images.present().all()
    test = read_photos(osv5m, split="test")
    assert (len(test), test.split) == (11, "test")
    assert test.images.read(10) == jpeg(test.latlon[10])


def test_osv5m_areas_are_the_unique_columns(osv5m):
    photos = read_photos(osv5m)
    assert set(photos.areas) == set(AREAS)
    north = photos.latlon[:, 0] > 0
    assert photos.areas["country"].to_pylist() == ["N" if is_north else "S" for is_north in north]
    assert photos.areas["region"].to_pylist() == [f"Coast_{'N' if is_north else 'S'}" for is_north in north]
    assert photos.areas["sub_region"].to_pylist() == [None] * 31
    assert photos.areas["city"].to_pylist() == [
        None if i % 5 == 0 else f"City {i % 7}_NaN_Coast" for i in range(31)
    ]
    assert all(pa.types.is_dictionary(column.type) for column in photos.areas.values())


def test_osv5m_with_parts_missing(tmp_path):
    write_osv5m(tmp_path, 31)
    (tmp_path / "images" / "train" / "01.zip").unlink()
    (tmp_path / "images" / "train" / "02" / f"{osv5m_ids(3)[2]}.jpg").unlink()
    photos = read_photos(tmp_path)
    gone = np.arange(31) % 3 == 1
    gone[2] = True
    np.testing.assert_array_equal(photos.images.present(), ~gone)
    with pytest.raises(FileNotFoundError, match=rf"images/train/{osv5m_ids(2)[1]}: in no folder"):
        photos.images.read(1)
    there = photos.take(np.flatnonzero(~gone))
    assert there.ids.to_pylist() == [i for i, is_gone in zip(osv5m_ids(31), gone, strict=True) if not is_gone]
    np.testing.assert_array_equal(there.latlon, photos.latlon[~gone])
    assert there.images.read(1) == jpeg(photos.latlon[3])
    assert there.areas["country"].to_pylist() == [
        c for c, is_gone in zip(photos.areas["country"].to_pylist(), gone, strict=True) if not is_gone
    ]
    (tmp_path / "test.csv").write_text("id,latitude,longitude\n1,2,3\n")
    with pytest.raises(FileNotFoundError, match="images/test: not there; geoclip download"):
        read_photos(tmp_path, split="test")


def test_an_extracted_part_is_read_from_its_folder(tmp_path):
    write_osv5m(tmp_path, 9)
    images = tmp_path / "images" / "train"
    with zipfile.ZipFile(images / "00.zip") as archive:
        archive.extractall(images)
    (images / "00.zip").write_bytes(b"half deleted")
    photos = read_photos(tmp_path)
    assert photos.images.name(3).endswith(f"images/train/00/{osv5m_ids(4)[3]}.jpg")
    assert photos.images.read(3) == jpeg(photos.latlon[3])


def read_in_worker(images):
    return [images.read(i) for i in range(31)]


def test_archives_are_read_in_forked_and_in_spawned_workers(osv5m):
    images = read_photos(osv5m).images
    whole = read_in_worker(images)
    inherited = set(_HANDLES._open.values())
    assert inherited
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_in_worker, [images] * 4, chunksize=1) == [whole] * 4
    assert read_in_worker(pickle.loads(pickle.dumps(images))) == whole
    assert set(_HANDLES._open.values()) == inherited


def test_a_damaged_zip_member_is_told_by_its_checksum(tmp_path):
    write_osv5m(tmp_path, 9)
    file = tmp_path / "images" / "train" / "00.zip"
    content = bytearray(file.read_bytes())
    first = read_photos(tmp_path).images
    start = content.index(jpeg(random_latlon(9)[0]))
    content[start + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"00\.zip/.*: damaged: its checksum is another"):
        first.read(0)
    deflated = content.index(f"00/{osv5m_ids(4)[3]}.jpg".encode()) + len(f"00/{osv5m_ids(4)[3]}.jpg")
    content[deflated : deflated + 20] = b"\xff" * 20
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"00\.zip/.*: damaged: "):
        first.read(3)


ZIP_CASES = {
    "plain": {"a.jpg": b"1" * 300, "deep/er/b.jpg": b"2", "Å 你.jpg": b"", "no suffix": b"3"},
    "marks": {"PK\x01\x02.jpg": b"PK\x01\x02" * 40, "x" * 60: b"PK\x05\x06", "PK\x01\x02PK\x01\x02": b"7"},
    "empty": {},
}


@pytest.mark.parametrize("case", ZIP_CASES)
@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("comment", [b"", b"PK\x05 a comment " * 400])
def test_zip_directories_agree_with_zipfile(tmp_path, monkeypatch, case, zip64, comment):
    file = tmp_path / "some.zip"
    with monkeypatch.context() as patch:
        if zip64:  # as beyond 4 GiB
            patch.setattr(zipfile, "ZIP64_LIMIT", 100)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = comment
            archive.mkdir("a folder")
            for number, (name, content) in enumerate(ZIP_CASES[case].items()):
                archive.writestr(name, content, compress_type=8 * (number % 2))
    directory = read_zip_directory(file)
    with zipfile.ZipFile(file) as archive:
        expected = [info for info in archive.infolist() if not info.is_dir()]
    assert directory.names.to_pylist() == [info.filename for info in expected]
    np.testing.assert_array_equal(directory.archive.starts, [info.header_offset for info in expected])
    for member, content in enumerate(ZIP_CASES[case].values()):
        assert directory.archive.read("name", member) == content


def test_damaged_zips(tmp_path):
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for i in range(20):
            archive.writestr(f"{i}.jpg", b"x" * 50)
    whole = (tmp_path / "whole.zip").read_bytes()
    file = tmp_path / "damaged.zip"
    for content in (b"", b"no zip at all", whole[:-30], whole[:500], whole[:1100] + whole[1200:]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.zip: (not a whole zip archive|damaged)"):
            read_zip_directory(file)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for position in rng.integers(1900, len(whole), 3):
            content[position] = rng.integers(256)
        file.write_bytes(content)
        try:
            directory = read_zip_directory(file)
            for member in range(len(directory.names)):
                directory.archive.read("name", member)
        except (ValueError, OSError) as error:
            refused += "damaged.zip" in str(error)
    assert refused > 100


def test_mp16(tmp_path):
    names = [f"{i:02x}/8d/90558065{i:02d}.jpg" for i in range(6)]
    latlon = random_latlon(6)
    write_places365(tmp_path / "mp16_places365.csv", names, latlon)
    (tmp_path / "mp16_urls.csv").write_text("".join(f"{n},http://farm.staticflickr.com/{n}\n" for n in names))
    for name, place in zip(names, latlon, strict=True):
        (tmp_path / "images" / "mp16" / name).parent.mkdir(parents=True)
        (tmp_path / "images" / "mp16" / name).write_bytes(jpeg(place))
    (tmp_path / "images" / "mp16" / names[4]).unlink()
    photos = read_photos(tmp_path)
    assert (photos.dataset, photos.split) == ("mp16", "train")
    assert photos.ids.to_pylist() == names
    np.testing.assert_array_equal(photos.latlon, latlon)
    assert photos.images.read(5) == jpeg(latlon[5])
    np.testing.assert_array_equal(photos.images.present(), np.arange(6) != 4)


@pytest.mark.parametrize("exchanged", [False, True])
def test_im2gps3k_with_either_header(tmp_path, exchanged):
    names = [f"10002{i}_e60e_1125_788@N00.jpg" for i in range(8)]
    latlon = random_latlon(8)
    assert (np.abs(latlon[:, 1]) > 90).any()
    other = {"LAT": "LON", "LON": "LAT"} if exchanged else {}
    header = [other.get(name, name) for name in PLACES365_HEADER]
    write_places365(tmp_path / "im2gps3k_places365.csv", names, latlon, header)
    (tmp_path / "im2gps3ktest").mkdir()
    for name, place in zip(names, latlon, strict=True):
        (tmp_path / "im2gps3ktest" / name).write_bytes(jpeg(place))
    if exchanged:
        with pytest.warns(UserWarning, match=r"im2gps3k_places365\.csv: .* exchanged"):
            photos = read_photos(tmp_path)
    else:
        photos = read_photos(tmp_path)
    assert (photos.dataset, photos.split) == ("im2gps3k", "test")
    np.testing.assert_array_equal(photos.latlon, latlon)
    assert photos.ids.to_pylist() == names
    assert photos.images.read(7) == jpeg(latlon[7])


@pytest.mark.parametrize(
    ("layout", "table", "images", "names"),
    [
        ("yfcc26k", "yfcc25600_places365.csv", "images/yfcc25600", ["34/8d/90.jpg", "34/8e/91.jpg"]),
        ("yfcc26k", "yfcc25600_places365.csv", "yfcc26k.zip", ["34/8d/90.jpg", "34/8e/91.jpg"]),
        ("yfcc4k", "yfcc4k_places365.csv", "yfcc4k", ["1001.jpg", "1002.png"]),
        ("yfcc4k", "yfcc4k_places365.csv", "yfcc4k.zip", ["1001", "1002"]),
        ("gws15k", "gws15k.csv", "images", ["a.jpg", "b.jpg"]),
    ],
)
def test_test_sets(tmp_path, layout, table, images, names):
    latlon = random_latlon(2)
    header = ["IMG_FILE" if layout == "gws15k" and name == "IMG_ID" else name for name in PLACES365_HEADER]
    write_places365(tmp_path / table, names, latlon, header)
    files = [name if "." in name else f"{name}.jpg" for name in names]
    for name, place in zip(files, latlon, strict=True):
        if images.endswith(".zip"):
            with zipfile.ZipFile(tmp_path / images, "a") as archive:
                archive.writestr(f"{images[:-4]}/{name}", jpeg(place))
        else:
            (tmp_path / images / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / images / name).write_bytes(jpeg(place))
    photos = read_photos(tmp_path)
    assert (photos.dataset, photos.split) == (layout, "test")
    assert photos.ids.to_pylist() == names
    np.testing.assert_array_equal(photos.latlon, latlon)
    assert [photos.images.read(i) for i in range(2)] == [jpeg(place) for place in latlon]
    if (tmp_path / images).is_dir():
        shutil.rmtree(tmp_path / images)
    else:
        (tmp_path / images).unlink()
    if layout != "gws15k":
        assert not read_photos(tmp_path).images.present().any()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of 20 photos, written by the webdataset package."""
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    latlon = random_latlon(20)
    with webdataset.ShardWriter(f"{folder}/train-%04d.tar", maxcount=8, verbose=0) as writer:
        for i, place in enumerate(latlon):
            fields = {"latitude": place[0], "longitude": place[1], "country": "AB"[i % 2], "note": [1]}
            key = f"{'deep/' * (i % 2)}photo{i:03d}"
            sample = {"jpg": jpeg(place), "json": fields, "cls": b"1", "seg.png": b"no photo"}
            writer.write({"__key__": key, **sample})
    return folder


@pytest.mark.parametrize("source", ["", "train-{0000..0002}.tar"])
def test_webdataset_shards(shards, source):
    import webdataset

    photos = read_photos(shards / source, split="train")
    assert (len(photos), photos.dataset, photos.split) == (20, "webdataset", "train")
    np.testing.assert_allclose(photos.latlon, random_latlon(20), rtol=0, atol=1e-12)
    assert photos.areas["country"].to_pylist() == ["AB"[i % 2] for i in range(20)]
    assert list(photos.areas) == ["country"]
    stored = webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False)
    for i, sample in enumerate(stored):
        assert photos.ids[i].as_py() == f"train-{i // 8:04d}/{sample['__key__']}"
        assert photos.images.read(i) == sample["jpg"]
        assert json.loads(sample["json"])["latitude"] == photos.latlon[i, 0]


def test_bad_webdataset_shards(shards, tmp_path):
    assert len(read_photos(shards / "train-0001.tar")) == 8
    with pytest.raises(FileNotFoundError, match=r"train-0003\.tar: no such shard"):
        read_photos(shards / "train-{0001..0003}.tar")
    whole = (shards / "train-0000.tar").read_bytes()
    file = tmp_path / "cut.tar"
    for content in (whole[:700], whole[: len(whole) // 2 + 100], b"no tar" * 300):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.tar: (not a whole tar archive|photo .* has no)"):
            read_photos(file)

    def shard(**members):
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name.replace("_", "."))
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return tmp_path / "bad.tar"

    for members, match in (
        ({"a_jpg": b"x"}, r"photo a has no a\.json"),
        ({"a_jpg": b"x", "a_json": b"{"}, r"bad\.tar/a\.json: damaged"),
        ({"a_jpg": b"x", "a_json": b"[1]"}, r"bad\.tar/a\.json: damaged"),
        (
            {"a_jpg": b"x", "a_json": b'{"lat": 3, "place": 1}'},
            "wanted latitude and longitude, it has lat",
        ),
        ({"a_jpg": b"x", "a_json": b'{"lat": 95, "lon": 1}'}, "row 1 has latitude 95"),
        ({}, "has no rows"),
    ):
        with pytest.raises(ValueError, match=match):
            read_photos(shard(**members))


def test_layouts_are_told_apart_or_named(osv5m, tmp_path):
    with pytest.raises(ValueError, match=r"layout: wanted one of osv5m, .*, got 'imagenet'"):
        read_photos(osv5m, layout="imagenet")
    with pytest.raises(ValueError, match="split: wanted train or test, got 'val'"):
        read_photos(osv5m, split="val")
    with pytest.raises(FileNotFoundError, match=r"holds none of mp16_places365\.csv"):
        read_photos(osv5m, layout="mp16")
    with pytest.raises(ValueError, match="is read as osv5m and needs none"):
        read_photos(osv5m, image_root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train\.csv: not there"):
        read_photos(tmp_path, layout="osv5m")
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "train.csv").write_text("id,latitude,longitude\n1,2,3\n")
    with pytest.raises(ValueError, match="images/train holds no folder and no zip"):
        read_photos(tmp_path)


def test_bad_osv5m_tables(tmp_path):
    write_osv5m(tmp_path, 4)
    table = tmp_path / "train.csv"
    lines = table.read_text().splitlines()
    for broken, match in (
        (lines[:1], "train.csv has no rows"),
        ([*lines, lines[2]], f"id '{osv5m_ids(2)[1]}' stands in 2 rows"),
        ([*lines, "7,nan,1" + "," * 29], "row 5 has latitude nan"),
        ([*lines, "7,1,1"], "cannot be read"),
        ([line.replace("latitude", "lat_", 1) for line in lines], "lacks the columns latitude"),
    ):
        table.write_text("\n".join(broken) + "\n")
        with pytest.raises(ValueError, match=match) as caught:
            read_photos(tmp_path)
        assert "\n" not in str(caught.value)


def test_line_breaks_in_quotes(tmp_path):
    text = "path,lat,lon,note\n" + "".join(f'{i}.jpg,1,2,"two\nlines, {i}"\n' for i in range(3000))
    (tmp_path / "photos.csv").write_text(text)
    photos = read_photos(tmp_path / "photos.csv")
    assert photos.ids.to_pylist() == [f"{i}.jpg" for i in range(3000)]


def test_zipped_photos_decode(osv5m):
    photos = read_photos(osv5m)
    image = read_image(photos.images.read(1), photos.images.name(1))
    np.testing.assert_array_equal(
        np.asarray(image), np.asarray(Image.open(io.BytesIO(photos.images.read(1))))
    )


def test_areas_of_a_table(tmp_path):
    columns = {"path": ["a", "b", "c"], "lat": [1.0, 2, 3], "lon": [4.0, 5, 6], "country": ["X", "", "X"]}
    pyarrow.csv.write_csv(pa.table({**columns, "State": ["s", "t", "s"]}), tmp_path / "photos.csv")
    areas = read_photos(tmp_path / "photos.csv").areas
    assert {name: column.to_pylist() for name, column in areas.items()} == {
        "country": ["X", None, "X"],
        "region": ["s", "t", "s"],
    }
