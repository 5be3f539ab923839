import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter

DIM = 7


def rows(count, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    latlon = np.column_stack([rng.uniform(-90, 90, count), rng.uniform(-180, 180, count)])
    return [f"photo-{i}" for i in range(count)], latlon, rng.normal(size=(count, dim)).astype(np.float32)


def write(path, count=50, *, chunk=9, rows_per_shard=16, **kwargs):
    ids, latlon, embeddings = rows(count)
    with EmbeddingWriter(path, DIM, rows_per_shard=rows_per_shard, **kwargs) as writer:
        for i in range(0, count, chunk):
            writer.append(ids[i : i + chunk], latlon[i : i + chunk], embeddings[i : i + chunk])
    return EmbeddingStore.open(path)


@pytest.mark.parametrize(
    ("chunk", "rows_per_shard"), [(9, 16), (50, 16), (16, 16), (1, 50), (50, 1), (7, 1000)]
)
def test_what_was_written_is_read(tmp_path, chunk, rows_per_shard):
    store = write(tmp_path / "a" / "store", chunk=chunk, rows_per_shard=rows_per_shard, info={"source": "x"})
    ids, latlon, embeddings = rows(50)
    assert len(store) == 50
    assert store.dim == DIM
    assert store.info == {"source": "x"}
    assert store.ids.to_pylist() == ids
    np.testing.assert_array_equal(store.latlon, latlon)
    assert store.latlon.dtype == np.float64
    half = embeddings.astype(np.float16)
    np.testing.assert_array_equal(store.all(), half)
    assert store.all().dtype == np.float16
    shuffled = np.random.default_rng(1).integers(0, 50, 200)
    read = store.read(shuffled)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, half[shuffled].astype(np.float32))
    assert store.read(np.empty(0, dtype=np.int64)).shape == (0, DIM)
    sizes = [len(np.load(file)) for file in sorted(store.path.glob("*.npy"))]
    assert sizes == [rows_per_shard] * (50 // rows_per_shard) + [50 % rows_per_shard] * (
        50 % rows_per_shard > 0
    )


def test_shards_are_memory_mapped_and_a_pickle_carries_the_path_only(tmp_path):
    store = write(tmp_path / "store", rows_per_shard=1000)
    base = store.all()
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    sent = pickle.dumps(store)
    assert len(sent) < 300
    np.testing.assert_array_equal(pickle.loads(sent).read([3, 1]), store.read([3, 1]))


def test_torch_tensors_and_integer_ids_are_taken(tmp_path):
    with EmbeddingWriter(tmp_path / "store", 2) as writer:
        writer.append([7, 8], torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2))
    store = EmbeddingStore.open(tmp_path / "store")
    assert store.ids.to_pylist() == ["7", "8"]
    np.testing.assert_array_equal(store.latlon, [[1, 2], [3, 4]])


def test_longitudes_up_to_360_are_read_within_180(tmp_path):
    with EmbeddingWriter(tmp_path / "store", 2) as writer:
        writer.append(["a", "b"], [[10.0, 350.0], [20.0, -190.0]], np.ones((2, 2)))
    file = tmp_path / "store" / "shard-00000.parquet"
    assert pq.read_table(file)["longitude"].to_pylist() == [-10, 170]
    # a store of an earlier version
    east = pa.table({"id": ["a", "b"], "latitude": [10.0, 20.0], "longitude": [350.0, -190.0]})
    pq.write_table(east, file)
    np.testing.assert_array_equal(EmbeddingStore.open(file.parent).latlon, [[10, -10], [20, 170]])


class Killed(BaseException):
    """Ends a write the way a kill does: nothing that catches OSError or Exception sees it."""


def append_until_killed(path, monkeypatch, call, nth):
    """Appends what the store lacks, as a program started anew would; dies at the nth call of os.<call>."""
    ids, latlon, embeddings = rows(50)
    real, calls = getattr(os, call), 0

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, dies)
        writer = EmbeddingWriter(path, DIM, info={"k": 1}, rows_per_shard=16)
        for i in range(writer.rows_done, 50, 9):
            writer.append(ids[i : i + 9], latlon[i : i + 9], embeddings[i : i + 9])
        writer.close()


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("nth", range(1, 11))
def test_a_kill_at_any_write_loses_the_unfinished_shard_only_and_doubles_nothing(
    tmp_path, monkeypatch, call, nth
):
    path = tmp_path / "store"
    ids, latlon, embeddings = rows(50)
    # the writes: meta.json; 3 full shards and a short one, of (npy, parquet) each; meta.json
    with pytest.raises(Killed):
        append_until_killed(path, monkeypatch, call, nth)
    if nth > 1:
        with pytest.raises(ValueError, match="unfinished"):
            EmbeddingStore.open(path)
        writer = EmbeddingWriter(path, DIM, info={"k": 1})
        assert writer.rows_done == min(50, 16 * ((nth - 2) // 2))
        assert writer.finished().ids.to_pylist() == ids[: writer.rows_done]
        assert not writer.complete
        del writer
    append_until_killed(path, monkeypatch, call, nth=0)
    store = EmbeddingStore.open(path)
    assert store.ids.to_pylist() == ids
    np.testing.assert_array_equal(store.latlon, latlon)
    np.testing.assert_array_equal(store.all(), embeddings.astype(np.float16))


def test_an_exception_in_the_block_keeps_the_rows_and_leaves_the_store_unfinished(tmp_path):
    ids, latlon, embeddings = rows(5)
    writer = EmbeddingWriter(tmp_path / "store", DIM)
    with pytest.raises(KeyboardInterrupt), writer:  # noqa: PT012
        writer.append(ids, latlon, embeddings)
        raise KeyboardInterrupt
    assert EmbeddingWriter(tmp_path / "store", DIM).finished().ids.to_pylist() == ids
    with pytest.raises(ValueError, match="unfinished"):
        EmbeddingStore.open(tmp_path / "store")


@pytest.mark.parametrize("nth", range(1, 3))
def test_a_full_disk_is_one_line_and_doubles_nothing(tmp_path, monkeypatch, nth):
    ids, latlon, embeddings = rows(20)
    writer = EmbeddingWriter(tmp_path / "store", DIM, rows_per_shard=16)
    real, calls = os.fsync, 0

    def full(descriptor):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*store.*: No space left on device$"), writer:
        writer.append(ids, latlon, embeddings)
    # leaving the block tried once more, with success
    assert EmbeddingWriter(tmp_path / "store", DIM).finished().ids.to_pylist() == ids
    assert not list(tmp_path.glob("store/.shard*"))


def test_a_second_writer_is_kept_out_until_the_first_has_ended(tmp_path):
    store, (ids, latlon, embeddings) = tmp_path / "store", rows(8)
    busy = f"^{re.escape(str(store))} is being written by another process"
    with EmbeddingWriter(store, DIM) as first:
        first.append(ids[:4], latlon[:4], embeddings[:4])
        with pytest.raises(BlockingIOError, match=busy):
            EmbeddingWriter(store, DIM)
        EmbeddingWriter(store, DIM, rank=1).close()
    with pytest.raises(KeyboardInterrupt), EmbeddingWriter(store, DIM) as second:  # noqa: PT012
        second.append(ids[4:6], latlon[4:6], embeddings[4:6])
        raise KeyboardInterrupt
    with EmbeddingWriter(store, DIM) as third:
        third.append(ids[6:], latlon[6:], embeddings[6:])
    assert EmbeddingStore.open(store).ids.to_pylist() == ids


def test_a_worker_that_outlives_its_killed_writer_holds_no_lock(tmp_path):
    script = """
import os, sys, time
from geoclip.embedding_store import EmbeddingWriter
writer = EmbeddingWriter(sys.argv[1], 2)
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
    store = tmp_path / "store"
    command = [sys.executable, "-c", script, str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(BlockingIOError):
            EmbeddingWriter(store, 2)
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it is still there
        EmbeddingWriter(store, 2).close()
    finally:
        process.kill()
        process.wait()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_a_complete_store_can_grow(tmp_path):
    write(tmp_path / "store", count=20)
    with EmbeddingWriter(tmp_path / "store", DIM) as writer:
        assert writer.complete
        assert writer.rows_done == 20
        writer.append(["new"], [[1.0, 2.0]], np.ones((1, DIM)))
    assert EmbeddingStore.open(tmp_path / "store").ids.to_pylist()[-2:] == ["photo-19", "new"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"latlon": [[90.5, 0.0]]}, r"row 1 has latitude 90\.5, longitude 0; .*within ±90"),
        ({"latlon": [[float("nan"), 0.0]]}, r"row 1 has latitude nan"),
        ({"latlon": [[0.0, 361.0]]}, r"longitude 361"),
        ({"latlon": [[100.0, 20.0]]}, r"latitude and longitude look swapped"),
        ({"latlon": [[1.0, 2.0], [3.0, 4.0]]}, r"latlon has shape \(2, 2\), wanted \(1, 2\)"),
        ({"embeddings": np.ones((1, 3))}, r"embeddings has shape \(1, 3\), wanted \(1, 7\)"),
        ({"embeddings": np.full((1, DIM), np.nan)}, r"embedding of 'a' is NaN"),
        ({"embeddings": np.full((1, DIM), 7e4)}, r"embedding of 'a' is NaN or beyond float16's 65504"),
    ],
)
def test_bad_rows_are_refused(tmp_path, change, match):
    good = {"ids": ["a"], "latlon": [[1.0, 2.0]], "embeddings": np.ones((1, DIM))}
    writer = EmbeddingWriter(tmp_path / "store", DIM)
    with pytest.raises(ValueError, match=match):
        writer.append(**{**good, **change})
    writer.append(**good)
    writer.close()
    assert len(EmbeddingStore.open(tmp_path / "store")) == 1


@pytest.mark.parametrize("argument", ["dim", "rows_per_shard"])
def test_bad_writer_arguments(tmp_path, argument):
    with pytest.raises(ValueError, match=f"{argument} is 0, wanted at least 1"):
        EmbeddingWriter(tmp_path / "store", **{"dim": DIM, argument: 0})
    assert not (tmp_path / "store").exists()


def test_the_writer_refuses_other_folders(tmp_path):
    write(tmp_path / "store", info={"backbone": "small"})
    with pytest.raises(ValueError, match="backbone 'small' there and 'large' here"):
        EmbeddingWriter(tmp_path / "store", DIM, info={"backbone": "large"})
    with pytest.raises(ValueError, match="dim 7 there and 8 here"):
        EmbeddingWriter(tmp_path / "store", 8, info={"backbone": "small"})
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        EmbeddingWriter(tmp_path, DIM)
    with pytest.raises(OSError, match=r"thesis\.txt"):
        EmbeddingWriter(tmp_path / "thesis.txt" / "store", DIM)


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such embedding store"):
        EmbeddingStore.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is not an embedding store: it has no meta\.json"):
        EmbeddingStore.open(tmp_path)
    EmbeddingWriter(tmp_path / "empty", DIM).close()
    with pytest.raises(ValueError, match="without a single row"):
        EmbeddingStore.open(tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("{", r"meta\.json is damaged"),
        ("[]", "is not an embedding store"),
        ({"format": "other"}, "is not an embedding store"),
        ({"version": 2}, "format version 2.*wanted version 1"),
        ({"dtype": "float64"}, "dtype float64"),
        ({"shards": [{"name": "../secret", "rows": 3}]}, r"meta\.json is damaged"),
        ({"shards": 3}, r"meta\.json is damaged"),
        ({"dim": None}, r"meta\.json is damaged"),
        (
            {"dim": 8},
            r"shard-00000\.npy holds float16 of shape \(16, 7\), though meta\.json says .*\(16, 8\)",
        ),
    ],
)
def test_a_damaged_or_foreign_meta(tmp_path, change, match):
    file = write(tmp_path / "store").path / "meta.json"
    file.write_text(
        change if isinstance(change, str) else json.dumps({**json.loads(file.read_text()), **change})
    )
    with pytest.raises(ValueError, match=match):
        EmbeddingStore.open(tmp_path / "store")


def test_damaged_shards(tmp_path):
    folder = write(tmp_path / "store").path
    array, table = folder / "shard-00001.npy", folder / "shard-00001.parquet"
    whole_array, whole_table = array.read_bytes(), table.read_bytes()

    for damaged in (whole_array[:-10], whole_array[:3], b""):
        array.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shard-00001\.npy is damaged"):
            EmbeddingStore.open(folder)
    np.save(array, np.zeros((15, DIM), np.float16))
    with pytest.raises(ValueError, match=r"shard-00001\.npy holds float16 of shape \(15, 7\)"):
        EmbeddingStore.open(folder)
    np.save(array, np.zeros((16, DIM), np.float32))
    with pytest.raises(ValueError, match=r"shard-00001\.npy holds float32"):
        EmbeddingStore.open(folder)
    array.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.npy is missing"):
        EmbeddingStore.open(folder)
    array.write_bytes(whole_array)

    table.write_bytes(whole_table[:-10])
    with pytest.raises(ValueError, match=r"shard-00001\.parquet is damaged"):
        EmbeddingStore.open(folder)
    table.write_bytes((folder / "shard-00003.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"shard-00001\.parquet holds 2 rows, though meta\.json says 16"):
        EmbeddingStore.open(folder)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.parquet is missing"):
        EmbeddingStore.open(folder)
    table.write_bytes(whole_table)
    assert len(EmbeddingStore.open(folder)) == 50


def test_rows_that_turned_nan_on_disk_are_named(tmp_path):
    folder = write(tmp_path / "store").path
    array = np.load(folder / "shard-00001.npy")
    array[4, 2] = np.nan
    np.save(folder / "shard-00001.npy", array)
    store = EmbeddingStore.open(folder)
    assert np.isfinite(store.read([19, 21])).all()
    with pytest.raises(ValueError, match="row 20 holds NaN"):
        store.read([19, 20, 21])


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ([50], "50 to 50, wanted 0 to 49"),
        ([-1, 3], "-1 to 3, wanted 0 to 49"),
        ([0.5], r"float64 of shape \(1,\), wanted \(n,\) integers"),
        ([[1]], r"int64 of shape \(1, 1\)"),
        (np.zeros(50, bool), "bool of shape"),
    ],
)
def test_bad_indices(tmp_path, indices, match):
    store = write(tmp_path / "store")
    with pytest.raises(ValueError, match=match):
        store.read(indices)


def test_rows_that_are_kept_come_as_they_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("geoclip.embedding_store._ROWS_AT_ONCE", 13)
    rng = np.random.default_rng(3)
    with EmbeddingWriter(tmp_path / "s", 8, rows_per_shard=16) as writer:
        writer.append(range(40), np.zeros((40, 2)), rng.standard_normal((40, 8)))
    store = EmbeddingStore.open(tmp_path / "s")
    rows = rng.integers(0, 40, 60)
    kept = store.copy(rows)
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept, np.concatenate(store._shards)[rows])
    np.testing.assert_array_equal(store.read(rows), kept)
    assert store.copy([]).shape == (0, 8)


def test_shuffled_reading_is_fast(tmp_path):
    rng = np.random.default_rng(0)
    with EmbeddingWriter(tmp_path / "store", 512, rows_per_shard=1024) as writer:
        writer.append(range(32768), rng.uniform(-90, 90, (32768, 2)), rng.normal(size=(32768, 512)))
    store = EmbeddingStore.open(tmp_path / "store")
    order = rng.permutation(len(store)).reshape(-1, 1024)
    start = time.perf_counter()
    for batch in order:
        store.read(batch)
    # 900,000 rows/s on an idle core; the bar for training is 50,000
    assert order.size / (time.perf_counter() - start) > 50_000


def open_with_limits(store, soft, hard):
    """What a process with these limits of open files reads of a store, or its error."""
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
from geoclip.embedding_store import EmbeddingStore
try:
    store = EmbeddingStore.open(sys.argv[1])
    print(len(store.read(range(len(store)))), len(store.ids), list(store.areas))
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", script, str(store), str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_more_shards_than_files_may_be_open(tmp_path):
    store = write(tmp_path / "store", 300, rows_per_shard=1).path
    assert open_with_limits(store, 128, 1024) == "300 300 []\n"
    refused = open_with_limits(store, 128, 128)
    assert re.match(r"OSError \[Errno 24\] Too many open files: '.*shard-00\d+\.(npy|parquet)'$", refused)
    # tables are read one after the other
    assert open_with_limits(store, 360, 360) == "300 300 []\n"
