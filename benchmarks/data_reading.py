"""`python -m benchmarks.data_reading`: opening OSV5M's table, and shuffled reading of stored embeddings.

The table has OSV5M's columns, its lengths of fields and its numbers of regions and cities. It is opened in
fresh processes by `geoclip.datasets.read_photos`; memory is the peak of the resident set, with that of an
equal process that opens a table of 1,000 rows as the baseline. The embeddings are read in batches of 1,024
at random places, as training reads them, from shards in the page cache; the floor is a plain copy of the
same rows in their order.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from benchmarks.fresh_process import output_of
from benchmarks.machine import describe
from benchmarks.table import machine_line, table, verdict
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter

ROWS, BAR_SECONDS, BAR_MIB = 1_000_000, 5.0, 500e6 / 2**20
EMBEDDINGS, DIM, BATCH, BAR_SAMPLES = 200_000, 768, 1024, 50_000
ROUNDS = 5
CITIES = 60_000
TABLE_HEAD = ["rows", "file MiB", "seconds", "bar", "peak MiB", "bar", "baseline MiB"]
READING_HEAD = ["embeddings", "E", "samples/s", "bar", "in order, samples/s"]
# the peak of the resident set is VmHWM: ru_maxrss starts at that of the parent
_OPEN = """
import json, sys, time
from geoclip.datasets import read_photos

begin = time.perf_counter()
photos = read_photos(sys.argv[1], layout="osv5m")
seconds = time.perf_counter() - begin
peak_kib = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps({"rows": len(photos), "seconds": seconds, "peak_mib": peak_kib / 1024}))
"""
COLUMNS = (
    "id latitude longitude thumb_original_url country sequence captured_at lon_bin lat_bin cell region "
    "sub-region city land_cover road_index drive_side climate soil dist_sea quadtree_10_5000 "
    "quadtree_10_25000 quadtree_10_1000 quadtree_10_50000 quadtree_10_12500 quadtree_10_500 "
    "quadtree_10_2500 unique_region unique_sub-region unique_city unique_country creator_username creator_id"
)
HEADER = COLUMNS.split()


def write_osv5m_table(folder: Path, rows: int) -> Path:
    """Writes train.csv, some 470 bytes a row, beside an empty folder of images."""
    (folder / "images" / "train" / "00").mkdir(parents=True)
    rng = np.random.default_rng(0)
    file = folder / "train.csv"
    writer = None
    for start in range(0, rows, 50_000):
        block = _rows(np.arange(start, min(start + 50_000, rows)), rng)
        writer = writer or pyarrow.csv.CSVWriter(str(file), block.schema)
        writer.write_table(block)
    assert writer is not None
    writer.close()
    return file


def _rows(number: np.ndarray, rng: np.random.Generator) -> pa.Table:
    city = rng.integers(0, CITIES, len(number))

    def text(pattern: str, values: np.ndarray) -> pa.Array:
        return pa.array([pattern % value for value in values.tolist()])

    columns = {name: pa.array(rng.integers(0, 12, len(number))) for name in HEADER}
    columns |= {
        "id": pa.array(10**14 + number * 7919),
        "latitude": pa.array(rng.uniform(-90, 90, len(number))),
        "longitude": pa.array(rng.uniform(-180, 180, len(number))),
        "thumb_original_url": text("https://scontent.example/" + "x" * 180 + "%012d", number),
        "sequence": text("%022d", number),
        "cell": text("(%d, 8)", city % 100),
        "country": text("C%d", city // 300),
        "unique_country": text("C%d", city // 300),
        "region": text("Region %d", city // 20),
        "unique_region": text("Region %d_C", city // 20),
        "sub-region": text("Sub %d", city // 3),
        "unique_sub-region": text("Sub %d_Region_C", city // 3),
        "city": text("City %d", city),
        "unique_city": text("City %d_Sub_Region_C", city),
        "creator_username": text("somebody%d", city),
    }
    return pa.table({name: columns[name] for name in HEADER})


def open_table(folder: Path) -> dict[str, Any]:
    """Opens a table in a fresh process, which loads nothing but what it needs for that."""
    row: dict[str, Any] = json.loads(output_of("-c", _OPEN, str(folder)))
    return row


def measure_table(folder: Path, rows: int) -> dict[str, Any]:
    """Median time and largest peak of some fresh processes."""
    write_osv5m_table(folder / "small", 1000)
    size = write_osv5m_table(folder / "large", rows).stat().st_size
    baseline = open_table(folder / "small")["peak_mib"]
    opened = [open_table(folder / "large") for _ in range(ROUNDS)]
    assert all(row["rows"] == rows for row in opened)
    return {
        "rows": rows,
        "file_mib": size / 2**20,
        "seconds": [row["seconds"] for row in opened],
        "peak_mib": max(row["peak_mib"] for row in opened),
        "baseline_mib": baseline,
    }


def measure_reading(folder: Path, embeddings: int) -> dict[str, Any]:
    """Samples per second of shuffled batches, and of a copy in order."""
    rng = np.random.default_rng(0)
    with EmbeddingWriter(folder / "store", DIM) as writer:
        for start in range(0, embeddings, 8192):
            some = np.arange(start, min(start + 8192, embeddings))
            places = rng.uniform(-90, 90, (len(some), 2))
            writer.append(some, places, rng.standard_normal((len(some), DIM), dtype=np.float32))
    store = EmbeddingStore.open(folder / "store")
    batches = embeddings // BATCH
    shuffled, copied = [], []
    for _ in range(ROUNDS):
        order = rng.permutation(embeddings)[: batches * BATCH].reshape(batches, BATCH)
        begin = time.perf_counter()
        for batch in order:
            store.read(batch)
        shuffled.append(order.size / (time.perf_counter() - begin))
        begin = time.perf_counter()
        for shard in store._shards:
            shard.astype(np.float32)
        copied.append(embeddings / (time.perf_counter() - begin))
    return {"embeddings": embeddings, "dim": DIM, "batch": BATCH, "shuffled": shuffled, "copied": copied}


def markdown(result: dict[str, Any]) -> str:
    """The result as two tables."""
    opened, reading = result["table"], result["reading"]
    seconds, shuffled = opened["seconds"], reading["shuffled"]
    bars = [
        bool(np.median(seconds) < BAR_SECONDS),
        bool(opened["peak_mib"] < BAR_MIB),
        bool(np.median(shuffled) >= BAR_SAMPLES),
    ]
    table_row = [
        f"{opened['rows']:,}",
        f"{opened['file_mib']:.0f}",
        f"{np.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
        f"< {BAR_SECONDS:g}: {verdict(bars[0])}",
        f"{opened['peak_mib']:.0f}",
        f"< {BAR_MIB:.0f}: {verdict(bars[1])}",
        f"{opened['baseline_mib']:.0f}",
    ]
    reading_row = [
        f"{reading['embeddings']:,}",
        f"{reading['dim']}",
        f"{np.median(shuffled):,.0f} ({min(shuffled):,.0f} to {max(shuffled):,.0f})",
        f"≥ {BAR_SAMPLES:,}: {verdict(bars[2])}",
        f"{np.median(reading['copied']):,.0f}",
    ]
    parts = [
        f"# Reading data: {result['machine']['processor']}, {result['date']}",
        machine_line(result["machine"], bars),
        f"An OSV5M-like table, opened with its administrative areas: median of {ROUNDS} fresh processes, "
        "least to most, and the largest peak of their resident sets; baseline: the same with 1,000 rows.",
        "\n".join(table(TABLE_HEAD, [opened], lambda _: table_row)),
        f"Batches of {BATCH:,} stored embeddings at random, float16 in the page cache to float32: median of "
        f"{ROUNDS} passes; beside it the same rows converted in their order, a shard at a time.",
        "\n".join(table(READING_HEAD, [reading], lambda _: reading_row)),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_reading", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    options = parser.parse_args(arguments)
    rows, embeddings = (20_000, 4096) if options.quick else (ROWS, EMBEDDINGS)
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": describe(torch.device("cpu")),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["table"] = measure_table(Path(folder), rows)
        result["reading"] = measure_reading(Path(folder), embeddings)
    text = markdown(result)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"data-reading-cpu-{result['date']}"
    Path(f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    Path(f"{stem}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
