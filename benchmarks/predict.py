"""`geoclip predict` of 1,000 cached embeddings over 100,000 places against upstream geoclip's own loop.

    python -m benchmarks.predict [--queries 1000] [--turns 3] [--out benchmarks/results]

Both sides have the official weights and gallery and leave the image tower out: ours reads an embedding store,
upstream's `predict` runs unchanged over a one-pixel photo with an image encoder whose CLIP gives the cached
embedding. Upstream is the wheel geoclip 1.3.0 in a process of its own, with as many threads. The two take
turns: one query of upstream's, one whole command of ours; a first one of ours finds the gallery cache empty.
Upstream's time for all queries is the median of its queries times their number. Places and probabilities are
compared, too.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe
from geoclip.cli import main as geoclip
from geoclip.embedding_store import EmbeddingWriter
from geoclip.upstream import fetch_upstream

BAR = 20.0
TOP_K = 5
_UPSTREAM = '''
import json, sys, types
from time import perf_counter
import numpy as np, torch
from torch import nn

wheel, embeddings, photo, threads, top_k = sys.argv[1:]
torch.set_num_threads(int(threads))
package = types.ModuleType("geoclip")  # without its __init__, which imports the training script
package.__path__ = [wheel + "/geoclip"]
sys.modules["geoclip"] = package
import geoclip.model

class CachedEmbeddings(nn.Module):
    """Upstream's ImageEncoder with a CLIP that has seen the photo before."""

    def __init__(self, **_):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(768, 768), nn.ReLU(), nn.Linear(768, 512))

    def preprocess_image(self, image):
        return self.embedding

    def forward(self, embedding):
        return self.mlp(embedding)

sys.modules["geoclip.model.GeoCLIP"].ImageEncoder = CachedEmbeddings
model = geoclip.model.GeoCLIP().eval()
embeddings = torch.from_numpy(np.load(embeddings))
print("ready", flush=True)
for line in sys.stdin:
    model.image_encoder.embedding = embeddings[int(line)][None]
    start = perf_counter()
    latlon, probability = model.predict(photo, int(top_k))
    seconds = perf_counter() - start
    print(json.dumps([seconds, latlon.tolist(), probability.tolist()]), flush=True)
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3, help="queries of upstream's that are timed")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.queries, options.turns)
    path = options.out / f"predict-{result['date']}"
    options.out.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


def measure(folder: Path, queries: int, turns: int) -> dict[str, Any]:
    """Seconds of both sides, taken in turns."""
    machine = describe(torch.device("cpu"))
    embeddings = np.random.default_rng(0).normal(size=(queries, 768)).astype(np.float16)
    np.save(folder / "embeddings.npy", embeddings.astype(np.float32))
    with EmbeddingWriter(folder / "store", 768, info={}) as writer:
        writer.append(range(queries), np.zeros((queries, 2)), embeddings)
    theirs, cached, empty = [], [], 0.0
    same_places, difference = 0, 0.0
    with _Upstream(folder) as upstream:
        print("both sides have loaded their modules", file=sys.stderr)
        for turn in range(turns):
            query = turn * (queries // turns)
            taken, latlon, probability = upstream.predict(query)
            theirs.append(taken)
            print(f"upstream, one query: {taken:.2f} s", file=sys.stderr)
            if turn == 0:
                empty = _ours(folder)[0]
                print(f"ours, {queries:,} queries, empty cache: {empty:.2f} s", file=sys.stderr)
            taken, rows = _ours(folder)
            cached.append(taken)
            print(f"ours, {queries:,} queries: {taken:.2f} s", file=sys.stderr)
            mine = rows[TOP_K * query : TOP_K * (query + 1)]
            found = np.array([[float(row["latitude"]), float(row["longitude"])] for row in mine])
            same_places += int((np.abs(found - latlon) < 1e-4).all(axis=1).sum())
            ours = np.array([float(row["probability"]) for row in mine])
            difference = max(difference, float(np.abs(ours - probability).max()))
    loop = statistics.median(theirs) * queries
    return {
        "date": date.today().isoformat(),
        "machine": machine,
        "queries": queries,
        "places": 100_000,
        "bar": BAR,
        "upstream_s_per_query": theirs,
        "upstream_loop_s": loop,
        "ours_s": {"empty cache": [empty], "cached": cached},
        "faster": {"empty cache": loop / empty, "cached": loop / statistics.median(cached)},
        "same_places": [same_places, TOP_K * turns],
        "largest_difference_of_probability": difference,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    machine, faster = result["machine"], result["faster"]
    theirs = result["upstream_s_per_query"]
    same, compared = result["same_places"]
    lines = [
        f"# geoclip predict: {machine['processor']}, {result['date']}",
        "",
        f"{machine['threads']} threads of {machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"commit {machine['commit'][:12]}. {result['queries']:,} cached embeddings over {result['places']:,} "
        "places, official weights, image tower excluded on both sides. Ours is the whole command with its "
        "radii, from the embedding store to the CSV, in a process that has loaded its modules.",
        "",
        f"Upstream's `predict` took {statistics.median(theirs):.2f} s a query, the median of {len(theirs)} "
        f"timed in turns with ours ({', '.join(f'{s:.2f}' for s in theirs)}); its loop over all "
        f"queries is that times {result['queries']:,}: {result['upstream_loop_s']:,.0f} s.",
        "",
        f"| `geoclip predict` | s | faster than upstream's loop (bar: {result['bar']:.0f}) |",
        "| --- | --- | --- |",
    ]
    for name, seconds in result["ours_s"].items():
        times = ", ".join(f"{s:.2f}" for s in seconds)
        met = "met" if faster[name] >= result["bar"] else "MISSED"
        lines.append(f"| {name} | {times} | {faster[name]:,.0f} ({met}) |")
    lines += [
        "",
        f"Of the {compared} places of the timed queries {same} are upstream's, rank by rank; probabilities "
        f"differ by {result['largest_difference_of_probability']:.0e} at most.",
        "",
    ]
    return "\n".join(lines)


class _Upstream:
    """Upstream's model in its own process."""

    def __init__(self, folder: Path) -> None:
        # the smallest image that there is: upstream's predict opens one
        (folder / "photo.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
        arguments = [fetch_upstream().folder, folder / "embeddings.npy", folder / "photo.ppm"]
        arguments += [torch.get_num_threads(), TOP_K]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _UPSTREAM, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Upstream:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def predict(self, query: int) -> tuple[float, list[list[float]], list[float]]:
        """Seconds, places and probabilities of a query."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{query}\n")
        self._process.stdin.flush()
        seconds, latlon, probability = json.loads(self._process.stdout.readline())
        return seconds, latlon, probability


def _ours(folder: Path) -> tuple[float, list[dict[str, str]]]:
    """Seconds of `geoclip predict` over the store, and its rows."""
    command = ["predict", folder / "store", "--gallery-cache", folder / "cache", "--top-k", TOP_K]
    command += ["--batch-size", 1024, "--device", "cpu"]
    written = io.StringIO()
    start = perf_counter()
    with redirect_stdout(written):
        code = geoclip([str(part) for part in command])
    seconds = perf_counter() - start
    assert code == 0
    return seconds, list(csv.DictReader(io.StringIO(written.getvalue())))


if __name__ == "__main__":
    main()
