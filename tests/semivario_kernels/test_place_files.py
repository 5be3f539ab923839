import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from semivario_kernels.place_files import read_places

LATLON = np.array([[48.8584, 2.2945], [-33.8568, 151.2153], [90.0, -180.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays(dtype, tmp_path):
    np.save(tmp_path / "p.npy", LATLON.astype(dtype))
    np.savez(tmp_path / "p.npz", embeddings=np.zeros((3, 4)), latlon=LATLON.astype(dtype))
    for name in ("p.npy", "p.npz"):
        table = read_places(tmp_path / name)
        assert table.latlon.dtype == np.float64
        np.testing.assert_array_equal(table.latlon, LATLON.astype(dtype))
        assert table.groups is None


@pytest.mark.parametrize("header", ["latitude,longitude,who", "LAT,LON,who", "Lat, Lng ,who"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_by_the_names_of_its_columns(header, encoding, tmp_path):
    rows = [
        f'{latitude!r},{longitude!r},"Zoë, {k}"' for k, (latitude, longitude) in enumerate(LATLON.tolist())
    ]
    file = tmp_path / "p.csv"
    file.write_text("\r\n".join([header, *rows, "", ""]), encoding=encoding)
    table = read_places(file, groups="who")
    np.testing.assert_array_equal(table.latlon, LATLON)
    assert table.groups.tolist() == ["Zoë, 0", "Zoë, 1", "Zoë, 2"]


def test_csv_columns_in_any_order(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("name,long,lat\na,2.5,1.5\nb,-4,3\n")
    np.testing.assert_array_equal(read_places(file).latlon, [[1.5, 2.5], [3, -4]])


def test_parquet(tmp_path):
    file = tmp_path / "p.parquet"
    columns = {"longitude": LATLON[:, 1], "latitude": LATLON[:, 0], "continent": [7, 7, 8]}
    pq.write_table(pa.table(columns), file, row_group_size=2)
    table = read_places(file, groups="continent")
    np.testing.assert_array_equal(table.latlon, LATLON)
    assert table.groups.tolist() == ["7", "7", "8"]


@pytest.mark.parametrize("rows_per_shard", [2, 100])
def test_the_trainers_store_reads_as_its_own_reader_reads_it(rows_per_shard, tmp_path):
    with EmbeddingWriter(tmp_path / "store", 4, rows_per_shard=rows_per_shard) as writer:
        writer.append("abc", LATLON, np.ones((3, 4)))
    store = EmbeddingStore.open(tmp_path / "store")
    table = read_places(tmp_path / "store", groups="id")
    np.testing.assert_array_equal(table.latlon, store.latlon)
    assert table.groups.tolist() == store.ids.to_pylist()


def test_csv_beside_plain_shards(tmp_path):
    for number, rows in ((2, LATLON[:2]), (10, LATLON[2:])):
        np.save(tmp_path / f"part{number}.npy", np.ones((len(rows), 4), np.float32))
        np.savetxt(tmp_path / f"part{number}.csv", rows, delimiter=",", header="lat,lon", comments="")
    np.testing.assert_array_equal(read_places(tmp_path).latlon, LATLON)


def broken(name, folder):
    file = folder / name
    if name == "wide.npy":
        np.save(file, np.zeros((5, 3)))
    elif name == "words.npy":
        np.save(file, np.array([["a", "b"]]))
    elif name == "two.npz":
        np.savez(file, a=LATLON, b=LATLON)
    elif name == "table.npy":
        np.save(file, LATLON)
    elif name == "nameless.csv":
        file.write_text("1.0,2.0\n3.0,4.0\n")
    elif name == "empty.csv":
        file.write_text("")
    elif name == "words.csv":
        file.write_text("latitude,longitude\n1.0,2.0\n1.0,east\n")
    elif name == "short.csv":
        file.write_text("id,latitude,longitude\na,1.0,2.0\nb,1.0\n")
    elif name == "latin.csv":
        file.write_bytes("latitude,longitude,näme\n".encode("latin-1"))
    elif name in ("text.parquet", "places.txt"):
        file.write_text("latitude,longitude\n")
    elif name == "nulls.parquet":
        pq.write_table(pa.table({"lat": [1.0, None], "lon": [1.0, 2.0]}), file)
    elif name == "nameless.parquet":
        pq.write_table(pa.table({"x": [1.0], "y": [1.0]}), file)
    elif name == "good.csv":
        file.write_text("latitude,longitude\n1.0,2.0\n")
    return file


@pytest.mark.parametrize(
    ("name", "groups", "message"),
    [
        ("wide.npy", None, r"wanted \(N, 2\) latitudes and longitudes, got float64 of shape \(5, 3\)"),
        ("words.npy", None, r"wanted \(N, 2\) latitudes and longitudes, got <U1"),
        ("two.npz", None, "no array 'latlon'; it holds a, b"),
        ("table.npy", "who", r"holds no column who; wanted a \.csv or \.parquet"),
        ("nameless.csv", None, "wanted a column named latitude or lat, got 1.0, 2.0"),
        ("empty.csv", None, "wanted a column named latitude or lat, got nothing"),
        ("words.csv", None, "wanted numbers as latitude and longitude: .*east"),
        ("short.csv", None, "line 3 has fewer columns than the header"),
        ("latin.csv", None, "not a CSV file"),
        ("good.csv", "who", "no column who; it holds latitude, longitude"),
        ("text.parquet", None, "not a Parquet file"),
        ("nulls.parquet", None, "column lat holds missing values"),
        ("nameless.parquet", None, "wanted a column named latitude or lat, got x, y"),
        ("places.txt", None, r"wanted \.npy, \.npz, \.csv, \.parquet or a folder"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(name, groups, message, tmp_path):
    file = broken(name, tmp_path)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        read_places(file, groups=groups)


@pytest.mark.parametrize("name", ["p.npy", "p.npz", "p.csv", "p.parquet", "p"])
def test_what_is_missing_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        read_places(tmp_path / name)
