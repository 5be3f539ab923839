import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from semivario_kernels.embedding_files import MAPPED_BYTES, PARQUET_ROWS, read_embeddings


def matrix(rows=11, dim=5, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(dtype)


def save(path, array):
    np.save(path, array)
    return path


def lists(array, kind):
    values = pa.array(array.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(values, array.shape[1])
    offsets = np.arange(len(array) + 1) * array.shape[1]
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_mapped_and_never_changed(dtype, order, tmp_path):
    wanted = matrix(dtype=dtype)
    file = save(tmp_path / "v.npy", np.asarray(wanted, order=order))
    got = read_embeddings(file)
    assert got.dtype == dtype
    assert got.flags.writeable  # else torch would copy all of it
    np.testing.assert_array_equal(got, wanted)
    got[3] = 7
    np.testing.assert_array_equal(np.load(file), wanted)


def test_the_other_byte_order_is_turned(tmp_path):
    wanted = matrix()
    got = read_embeddings(save(tmp_path / "v.npy", wanted.astype(">f4")))
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, wanted)


def test_npz_takes_the_named_the_usual_or_the_only_array(tmp_path):
    first, second = matrix(seed=1), matrix(seed=2)
    file = tmp_path / "v.npz"
    np.savez(file, only=first)
    np.testing.assert_array_equal(read_embeddings(file), first)
    np.savez_compressed(file, latlon=np.zeros((11, 2)), embeddings=first, heads=second)
    np.testing.assert_array_equal(read_embeddings(file), first)
    np.testing.assert_array_equal(read_embeddings(file, column="heads"), second)
    with pytest.raises(ValueError, match=r"v\.npz: no array 'tails'; it holds latlon, embeddings, heads"):
        read_embeddings(file, column="tails")


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_parquet_lists_over_many_batches(kind, dtype, tmp_path):
    wanted = matrix(2 * PARQUET_ROWS + 3, 3, dtype)
    file = tmp_path / "v.parquet"
    table = pa.table({"id": np.arange(len(wanted)), "vector": lists(wanted, kind)})
    pq.write_table(table, file, row_group_size=5000)
    for column in (None, "vector"):
        got = read_embeddings(file, column=column)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, wanted)


def test_parquet_columns_come_in_the_order_of_their_numbers(tmp_path):
    wanted = matrix(7, 12)
    columns = {f"e{k}": wanted[:, k] for k in sorted(range(12), key=str)}
    file = tmp_path / "v.parquet"
    pq.write_table(pa.table({"latitude": np.zeros(7), **columns}), file)
    np.testing.assert_array_equal(read_embeddings(file, column="e*"), wanted)


@pytest.mark.parametrize("meta", [True, False])
def test_shards_are_joined_in_order(meta, tmp_path):
    # more than one block is copied of the largest
    parts = [matrix(rows, 64, seed=rows) for rows in (MAPPED_BYTES // 256 + 3, 2, 9)]
    for number, part in zip((2, 9, 10), parts, strict=True):
        save(tmp_path / f"shard-{number}.npy", part)
    order = [0, 1, 2]
    if meta:
        order = [2, 0]
        names = [f"shard-{(2, 9, 10)[k]}" for k in order]
        (tmp_path / "meta.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))
    got = read_embeddings(tmp_path, scratch=tmp_path)
    np.testing.assert_array_equal(got, np.concatenate([parts[k] for k in order]))
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json"] * meta + [".npy"] * 3


@pytest.mark.parametrize("rows_per_shard", [4, 100])
def test_the_trainers_store_reads_as_its_own_reader_reads_it(rows_per_shard, tmp_path):
    with EmbeddingWriter(tmp_path / "store", 5, rows_per_shard=rows_per_shard) as writer:
        writer.append(range(11), np.zeros((11, 2)), matrix())
    wanted = EmbeddingStore.open(tmp_path / "store").read(np.arange(11))
    got = read_embeddings(tmp_path / "store")
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, wanted)


def test_an_unfinished_store_is_refused(tmp_path):
    writer = EmbeddingWriter(tmp_path / "store", 5)
    writer.append(range(11), np.zeros((11, 2)), matrix())
    writer.flush()
    with pytest.raises(ValueError, match="store: unfinished"):
        read_embeddings(tmp_path / "store")


def broken(name, folder):
    file = folder / name
    bad = matrix()
    bad[7, 2] = np.nan
    if name == "nan.npy":
        save(file, bad)
    elif name == "infinite.npy":
        save(file, np.full((3, 2), -np.inf))
    elif name == "flat.npy":
        save(file, np.zeros(5))
    elif name == "whole.npy":
        save(file, np.ones((5, 2), int))
    elif name == "long.npy":
        save(file, np.ones((5, 2), np.longdouble))
    elif name == "empty.npy":
        save(file, np.ones((0, 4)))
    elif name == "objects.npy":
        save(file, np.array([{}, None]))
    elif name in ("text.npy", "text.npz", "text.parquet", "x.csv"):
        file.write_text("latitude,longitude\n1,2\n")
    elif name == "cut.npy":
        save(file, matrix(100, 100))
        file.write_bytes(file.read_bytes()[:5000])
    elif name == "array.npz":
        save(folder / "array.npy", matrix()).rename(file)
    elif name == "two.npz":
        np.savez(file, a=matrix(), b=matrix())
    elif name == "ragged.parquet":
        pq.write_table(pa.table({"v": [[1.0, 2.0], [3.0]]}), file)
    elif name == "nulls.parquet":
        pq.write_table(pa.table({"v": [[1.0, 2.0], None]}), file)
    elif name == "holes.parquet":
        pq.write_table(pa.table({"v": [[1.0, 2.0], [None, 3.0]]}), file)
    elif name == "words.parquet":
        pq.write_table(pa.table({"v": [["a"], ["b"]]}), file)
    elif name == "none.parquet":
        pq.write_table(pa.table({"a": [1.0], "b": [2.0]}), file)
    elif name == "no rows.parquet":
        pq.write_table(pa.table({"v": pa.array([], pa.list_(pa.float32()))}), file)
    elif name == "no shards":
        file.mkdir()
    elif name == "unlike shards":
        file.mkdir()
        save(file / "a.npy", matrix(3, 4))
        save(file / "b.npy", matrix(3, 5))
    elif name == "lost shard":
        file.mkdir()
        (file / "meta.json").write_text('{"shards": [{"name": "a"}]}')
    elif name == "bad meta":
        file.mkdir()
        (file / "meta.json").write_text('{"shards": 3}')
    return file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan.npy", "row 7 holds NaN or infinite values"),
        ("infinite.npy", "row 0 holds NaN"),
        ("flat.npy", r"wanted \(N, E\) floating-point embeddings, got float64 of shape \(5,\)"),
        ("whole.npy", r"wanted .*, got int64 of shape \(5, 2\)"),
        ("long.npy", "wanted float16, float32 or float64, got "),
        ("empty.npy", r"wanted .* of shape \(0, 4\)"),
        ("objects.npy", r"not a \.npy file of numbers"),
        ("text.npy", r"not a \.npy file of numbers"),
        ("cut.npy", r"not a \.npy file of numbers"),
        ("text.npz", r"not an \.npz file of numbers"),
        ("array.npz", r"not an \.npz file of numbers"),
        ("two.npz", "no array 'embeddings'; it holds a, b"),
        ("text.parquet", "not a Parquet file"),
        ("ragged.parquet", "column v holds lists of 2 and of 1 numbers"),
        ("nulls.parquet", "column v holds missing values"),
        ("holes.parquet", "column v holds missing values"),
        ("words.parquet", "column v holds list<.*string>, wanted floating-point"),
        ("none.parquet", "wanted one column of lists, found 0 among a, b; name one.*--column"),
        ("no rows.parquet", r"wanted .* of shape \(0, 0\)"),
        ("x.csv", r"wanted \.npy, \.npz, \.parquet or a folder"),
        ("no shards", r"wanted a folder of \.npy shards, found none"),
        ("unlike shards", r"wanted shards of one dtype .* float32 of rows \(4,\), float32 of rows \(5,\)"),
        ("bad meta", "wanted a list of shards with names"),
    ],
)
def test_bad_files_are_named_with_what_is_wrong(name, message, tmp_path):
    file = broken(name, tmp_path)
    with pytest.raises(ValueError, match=f"{name}.*: {message}"):
        read_embeddings(file)


@pytest.mark.parametrize("name", ["v.npy", "v.npz", "v.parquet", "v.csv", "v", "lost shard"])
def test_what_is_missing_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{name}.*: no such file"):
        read_embeddings(broken(name, tmp_path))
