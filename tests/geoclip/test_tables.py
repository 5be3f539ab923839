import struct
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from geoclip.datasets import read_photos

from .rendered_photos import gps_exif, random_latlon, render, render_photos


def table(tmp_path, text, name="photos.csv"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_a_rendered_csv(tmp_path):
    photos = read_photos(render_photos(tmp_path / "photos", 12))
    assert len(photos) == 12
    assert photos.ids.to_pylist() == [f"photo-{i}" for i in range(12)]
    assert photos.images.paths.to_pylist() == [str(tmp_path / "photos" / f"{i:05d}.jpg") for i in range(12)]
    np.testing.assert_array_equal(photos.latlon, random_latlon(12))


def test_longitudes_up_to_360_come_within_180(tmp_path):
    text = "path,latitude,longitude\na.jpg,12.5,350\nb.jpg,-3,7.25\n"
    np.testing.assert_array_equal(read_photos(table(tmp_path, text)).latlon, [[12.5, -10], [-3, 7.25]])


def test_the_rendered_picture_depends_smoothly_on_the_place():
    places = random_latlon(40, seed=5)
    here = np.stack([render(place) for place in places]).astype(float)
    near = np.stack([render(place + 0.01) for place in places]).astype(float)
    assert np.abs(here - near).mean() < 1
    assert np.abs(here - here[::-1]).mean() > 30


def test_a_folder_of_jpegs_gives_what_the_csv_says(tmp_path):
    listed = read_photos(render_photos(tmp_path / "photos", 12))
    (tmp_path / "photos" / "deeper").mkdir()
    (tmp_path / "photos" / "00003.jpg").rename(tmp_path / "photos" / "deeper" / "00003.JPEG")
    found = read_photos(tmp_path / "photos")
    order = [0, 1, 2, *range(4, 12), 3]
    assert found.ids.to_pylist() == [*(f"{i:05d}.jpg" for i in order[:-1]), "deeper/00003.JPEG"]
    assert found.images.paths[11].as_py() == str(tmp_path / "photos" / "deeper" / "00003.JPEG")
    # EXIF seconds with four decimals are 3 mm; the four hemispheres are all there
    np.testing.assert_allclose(found.latlon, listed.latlon[order], atol=2e-8, rtol=0)
    assert len({tuple(signs) for signs in np.sign(found.latlon)}) == 4


def test_jpegs_without_a_position_are_left_out_with_a_warning(tmp_path):
    render_photos(tmp_path, 3)
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "a-plain.jpg")
    (tmp_path / "b-broken.jpg").write_bytes(b"")
    picture.save(tmp_path / "c-no-place.jpg", exif=gps_exif(95.0, 10.0))
    half = gps_exif(10.0, 10.0)
    del half.get_ifd(0x8825)[4]
    picture.save(tmp_path / "d-half.jpg", exif=half)
    with pytest.warns(
        UserWarning, match=r"4 of 7 JPEGs, .*a-plain\.jpg first, have no readable GPS position"
    ):
        photos = read_photos(tmp_path)
    assert photos.ids.to_pylist() == ["00000.jpg", "00001.jpg", "00002.jpg"]


def with_references(latitude, longitude, kind=2):
    """EXIF of 33° 51' and 70° 30' with these hemispheres, their tags written as of another kind."""
    exif = gps_exif(33.85, 70.5)
    gps = exif.get_ifd(0x8825)
    gps[1], gps[3] = latitude, longitude
    raw = exif.tobytes()
    order = "<" if raw[6:8] == b"II" else ">"
    for tag in (1, 3):
        ascii_tag, other = (struct.pack(order + "HH", tag, k) for k in (2, kind))
        assert raw.count(ascii_tag) == 1
        raw = raw.replace(ascii_tag, other)
    return raw


def test_hemispheres_are_read_from_text_and_from_bytes(tmp_path):
    picture = Image.new("RGB", (8, 8))
    for name, kind in (("ascii", 2), ("byte", 1), ("undefined", 7)):
        picture.save(tmp_path / f"{name}.jpg", exif=with_references("S", "W", kind))
    picture.save(tmp_path / "lower.jpg", exif=with_references("s ", "w"))
    photos = read_photos(tmp_path)
    assert len(photos) == 4
    np.testing.assert_allclose(photos.latlon, [[-33.85, -70.5]] * 4, atol=1e-6)


@pytest.mark.parametrize(("latitude", "longitude"), [("South", "W"), ("", "W"), ("E", "W"), ("S", "S")])
def test_a_hemisphere_that_is_none_is_no_position(tmp_path, latitude, longitude):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=with_references(latitude, longitude))
    with pytest.raises(ValueError, match=r"1 of 1 JPEGs, .* no readable GPS position"):
        read_photos(tmp_path)


def test_folders_without_photos(tmp_path):
    with pytest.raises(ValueError, match="holds no JPEG"):
        read_photos(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    with pytest.raises(ValueError, match=r"1 of 1 JPEGs, .* have no readable GPS position"):
        read_photos(tmp_path)
    with pytest.raises(ValueError, match="image_root"):
        read_photos(tmp_path, image_root=tmp_path)


@pytest.mark.parametrize(
    ("path", "latitude", "longitude"),
    [
        ("path", "latitude", "longitude"),
        ("IMG_FILE", "LAT", "LON"),
        ("image", "lat", "lon"),
        ("filename", "Latitude", "lng"),
    ],
)
def test_column_names(tmp_path, path, latitude, longitude):
    photos = read_photos(table(tmp_path, f"{longitude},note,{path},{latitude}\n20.5,x,a.jpg,-10\n"))
    np.testing.assert_array_equal(photos.latlon, [[-10, 20.5]])
    assert photos.ids.to_pylist() == ["a.jpg"]
    assert photos.images.paths.to_pylist() == [str(tmp_path / "a.jpg")]


def test_paths_start_from_the_table_or_the_image_root(tmp_path):
    file = table(tmp_path, "path,lat,lon\nsub/a.jpg,1,2\n/data/b.jpg,1,2\n")
    assert read_photos(file).images.paths.to_pylist() == [str(tmp_path / "sub/a.jpg"), "/data/b.jpg"]
    assert read_photos(str(file), image_root="/root dir").images.paths.to_pylist() == [
        "/root dir/sub/a.jpg",
        "/data/b.jpg",
    ]


def test_ids_are_kept_as_written(tmp_path):
    text = 'id,path,lat,lon\n007,"a, b.jpg",1,2\n1e3,NA,1,2\nÅ,c.jpg,1,2\n'
    photos = read_photos(table(tmp_path, "\ufeff" + text))
    assert photos.ids.to_pylist() == ["007", "1e3", "Å"]
    assert photos.images.paths.to_pylist() == [str(tmp_path / name) for name in ("a, b.jpg", "NA", "c.jpg")]


def test_parquet(tmp_path):
    columns = {
        "id": pa.array([3, 1]),
        "LAT": pa.array([1.5, -2.0], pa.float32()),
        "lng": pa.array(["7", "8.25"]),
        "image": ["a.jpg", "b.jpg"],
        "unused": [{"nested": 1}, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "photos.parquet")
    photos = read_photos(tmp_path / "photos.parquet")
    assert photos.ids.to_pylist() == ["3", "1"]
    assert photos.images.paths.to_pylist() == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    np.testing.assert_array_equal(photos.latlon, [[1.5, 7], [-2, 8.25]])
    assert photos.latlon.dtype == np.float64


HEAD = "id,path,latitude,longitude\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"lacks the columns path .* and latitude .* and longitude .*; it has no columns$"),
        (
            "name,lat,lon\n",
            r"lacks the columns path \(or img_file, .*img_id\); it has name, lat, lon$",
        ),
        ("path,north,lon\n", r"lacks the columns latitude \(or lat\); it has path, north, lon$"),
        (HEAD, "has no rows"),
        (
            HEAD + "1,a.jpg,10,20\n2,b.jpg,91,20\n",
            r"row 2 has latitude 91, longitude 20; .*longitude within ±360",
        ),
        (HEAD + "1,a.jpg,10,20\n2,b.jpg,,20\n", "row 2 has latitude nan"),
        (HEAD + "1,a.jpg,10,inf\n", "row 1 has latitude 10, longitude inf"),
        (HEAD + "1,a.jpg,10,400\n", "row 1 has latitude 10, longitude 400"),
        (HEAD + "1,a.jpg,ten,20\n", "cannot be read: .*invalid value 'ten'"),
        (HEAD + "1,a.jpg,10\n", "cannot be read: .*Expected 4 columns, got 3"),
        (HEAD + "1,a.jpg,10,20\n1,b.jpg,10,20\n2,c.jpg,0,0\n", "id '1' stands in 2 rows, wanted unique ids"),
        ("path,lat,lon\na.jpg,10,20\na.jpg,10,20\n", r"id 'a\.jpg' stands in 2 rows"),
        (HEAD + "1,a.jpg,10,20\n2,,10,20\n", "row 2 has an empty path"),
        (HEAD + "1,a.jpg,10,20\n,b.jpg,10,20\n", "row 2 has an empty id"),
    ],
)
def test_bad_tables_are_refused_with_the_file_named(tmp_path, text, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_photos(table(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "photos.csv"))
    assert "\n" not in str(caught.value)


def test_swapped_columns_are_named_only_where_swapping_mends_them(tmp_path):
    swapped = HEAD + "1,a.jpg,20,10\n2,b.jpg,151.2,-33.9\n"
    with pytest.raises(ValueError, match=r"row 2 has latitude 151\.2.*look swapped in the whole list"):
        read_photos(table(tmp_path, swapped))
    with pytest.raises(ValueError, match=r"row 2 has latitude 151.*look swapped in this row"):
        read_photos(table(tmp_path, swapped + "3,c.jpg,10,100\n"))
    with pytest.raises(ValueError, match=r"row 2 has latitude 151") as caught:
        read_photos(table(tmp_path, HEAD + "1,a.jpg,20,10\n2,b.jpg,151.2,-133.9\n"))
    assert "look swapped" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file or folder"):
        read_photos(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"photos\.xlsx is neither a \.csv or \.parquet file nor a folder"):
        read_photos(table(tmp_path, "x", "photos.xlsx"))
    with pytest.raises(ValueError, match=r"photos\.parquet cannot be read: "):
        read_photos(table(tmp_path, "x", "photos.parquet"))
    padding = "".join(f"{i},{i}.jpg,1,2\n" for i in range(9999))  # beyond what is read with the header
    for text in ("path,lat,lon,größe\n", HEAD + padding + "x,größe.jpg,1,2\n"):
        (tmp_path / "latin.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=r"(?i)latin\.csv cannot be read: .*utf-?8"):
            read_photos(tmp_path / "latin.csv")


def test_nulls_in_parquet(tmp_path):
    good = {"path": ["a", "b"], "lat": [1.0, 2.0], "lon": [3.0, 4.0]}
    for column, match in (
        ("path", "row 2 has an empty path"),
        ("lon", "row 2 has latitude 2, longitude nan"),
    ):
        pq.write_table(pa.table({**good, column: [good[column][0], None]}), tmp_path / "photos.parquet")
        with pytest.raises(ValueError, match=match):
            read_photos(tmp_path / "photos.parquet")


def test_columns_are_read_without_a_loop_over_rows(tmp_path):
    rows = 300_000
    rng = np.random.default_rng(0)
    columns = {
        "id": np.arange(rows),
        "path": pa.array([f"images/{i % 98:02d}/{i}.jpg" for i in range(rows)]),
        "latitude": rng.uniform(-90, 90, rows),
        "longitude": rng.uniform(-180, 180, rows),
        "caption": pa.array(["a long text that nobody asked for"] * rows),
    }
    pa.csv.write_csv(pa.table(columns), tmp_path / "many.csv")
    start = time.process_time()
    photos = read_photos(tmp_path / "many.csv")
    # 0.3 s of processor time; a Python loop over the rows, with paths and checks, takes more than the bound
    assert time.process_time() - start < 1.0
    np.testing.assert_array_equal(photos.latlon[:, 0], columns["latitude"])
    assert photos.ids[-1].as_py() == str(rows - 1)


def test_ids_that_are_one_number_but_two_texts(tmp_path):
    file = table(tmp_path, HEAD + "7,a.jpg,1,2\n007,b.jpg,1,2\n")
    assert read_photos(file).ids.to_pylist() == ["7", "007"]
