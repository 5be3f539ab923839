"""The operators beside the loss and the semivariogram: distances, top-k, batches, reading of embeddings.

Each case runs its contenders in turn; the first is what the others are checked against. The floor is the
time of the case's matrix products at the rate of square products taken in the same run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Sizes
from benchmarks.floor import matrix_rate
from benchmarks.naive import haversine_km
from benchmarks.progress import Progress
from benchmarks.table import machine_line, milliseconds, table
from benchmarks.timing import interleaved_seconds
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.sampling import NeighbourBatchSampler
from semivario_kernels import EARTH_RADIUS_KM, available_backends, pairwise_haversine, topk_gallery

Outcome = np.ndarray
Run = Callable[[], Outcome]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Operator:
    """One operator at one size.

    Attributes:
        name: of the operator.
        size: of the case, in words.
        rivals: contenders of others by name; the first is the oracle.
        ours: our contenders by name, the one that users get first.
        allowed: largest error.
        error: of an outcome against the oracle's; the largest absolute one by default.
        products_flops: FLOPs of the matrix products that cannot be done without.
    """

    name: str
    size: str
    rivals: dict[str, Run]
    ours: dict[str, Run]
    allowed: float
    error: Callable[[Outcome, Outcome], float] = lambda got, oracle: float(np.abs(got - oracle).max())
    products_flops: int = 0


# queries × gallery of the distances, of top-k (k = 10, D = 512), photos and batch of sampler and reading
SIZES: dict[Sizes, list[tuple[int, int]]] = {
    "quick": [(16, 48)],
    "default": [(1024, 20_000)],
    "full": [(256, 20_000), (1024, 20_000), (1024, 100_000), (4096, 100_000)],
}


@contextmanager
def distances(n: int, m: int) -> Iterator[Operator]:
    """(n, m) great-circle distances in km."""
    from sklearn.metrics.pairwise import haversine_distances

    rng = np.random.default_rng(0)
    a, b = _places(n, rng), _places(m, rng)
    a_torch, b_torch = torch.from_numpy(a), torch.from_numpy(b)
    a_radians, b_radians = np.radians(a), np.radians(b)
    yield Operator(
        "distances",
        f"{n:,} × {m:,}",
        {
            "scikit-learn": lambda: haversine_distances(a_radians, b_radians) * EARTH_RADIUS_KM,
            "naive torch": lambda: haversine_km(a_torch.float(), b_torch.float()).numpy(),
        },
        {
            name: lambda name=name: pairwise_haversine(a_torch, b_torch, backend=name).numpy()
            for name in available_backends()
            if name != "reference"
        },
        # near the antipode the haversine formula of the oracle itself loses digits, in float64 some metres
        allowed=0.05,
    )


@contextmanager
def top_k(n: int, m: int, k: int = 10, d: int = 512) -> Iterator[Operator]:
    """The k best of m gallery entries for each of n queries: their similarities."""
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.nn.functional.normalize(torch.randn(rows, d, generator=generator), dim=1) for rows in (n, m)
    )
    rivals = {"torch, whole matrix": lambda: torch.topk(x @ y.T, k).values.numpy()}
    try:
        import faiss
    except ImportError:
        pass
    else:
        index = faiss.IndexFlatIP(d)
        index.add(y.numpy())
        rivals["faiss IndexFlatIP"] = lambda: index.search(x.numpy(), k)[0]
    yield Operator(
        "top-10",
        f"{n:,} × {m:,}, D = {d}",
        rivals,
        {
            name: lambda name=name: topk_gallery(x, y, k, backend=name)[0].numpy()
            for name in available_backends()
            if name != "reference"
        },
        allowed=1e-5,
        products_flops=2 * n * m * d,
    )


@contextmanager
def neighbour_batch(n: int, m: int, neighbours: int = 7) -> Iterator[Operator]:
    """A batch of n out of m places: random seeds with the places nearest to them."""
    from sklearn.metrics.pairwise import haversine_distances

    latlon = _places(m, np.random.default_rng(0))
    radians = np.radians(latlon)
    sampler = NeighbourBatchSampler(latlon, n, neighbours=neighbours, seed=0)
    seeds = sampler.batch(0)[: sampler.seeds]
    candidates = min(1 + 2 * neighbours, m - 1)  # a neighbour of two seeds comes once, the next ones fill up

    def all_distances() -> Outcome:
        nearest = np.argpartition(haversine_distances(radians[seeds], radians), candidates, axis=1)
        return np.union1d(seeds, nearest[:, :candidates])

    yield Operator(
        "neighbour batch",
        f"{n:,} of {m:,} places",
        {"scikit-learn, all distances": all_distances},
        {"NeighbourBatchSampler": lambda: sampler.batch(0)},
        allowed=0.01,
        error=lambda got, oracle: float(1 - np.isin(got, oracle).mean()),  # share of rows near no seed
    )


@contextmanager
def reading(n: int, m: int, e: int = 768) -> Iterator[Operator]:
    """n random rows out of m embeddings on disk, read as a batch is."""
    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    try:
        embeddings = rng.standard_normal((m, e), dtype=np.float32).astype(np.float16)
        np.save(folder / "rows.npy", embeddings)
        with EmbeddingWriter(folder / "store", e, info={}) as writer:
            writer.append(np.arange(m), _places(m, rng), embeddings.astype(np.float32))
        del embeddings
        rows = rng.permutation(m)[:n]
        mapped, store = np.load(folder / "rows.npy", mmap_mode="r"), EmbeddingStore.open(folder / "store")
        yield Operator(
            "reading",
            f"{n:,} of {m:,} rows, E = {e}",
            {"numpy memory map": lambda: np.asarray(mapped[rows], dtype=np.float32)},
            {"EmbeddingStore": lambda: np.asarray(store.read(rows), dtype=np.float32)},
            allowed=0.0,
        )
    finally:
        shutil.rmtree(folder)


OPERATORS = (distances, top_k, neighbour_batch, reading)


def measure(_: list[str], device: torch.device, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Rows of the table: plain numbers, one dict per case and contender.

    Args:
        sizes: which sizes.
        device: the CPU.
        seconds: timed rounds of a case of the loss; a case here gets a quarter of it.
    """
    rate = matrix_rate(device, torch.float32)
    rows = []
    with Progress(len(SIZES[sizes]) * len(OPERATORS)) as progress:
        for n, m in SIZES[sizes]:
            for make in OPERATORS:
                progress.begin(f"{make.__name__} {n:,} × {m:,}")
                with make(n, m) as operator:
                    rows += measured(operator, seconds / 4, rate, progress.rounds)
    return {"times": rows, "memory": []}


def measured(
    operator: Operator, budget_s: float, rate: float, on_round: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Rows of one case; `rate` is that of square products in FLOP/s."""
    oracle_name = next(iter(operator.rivals))
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, str] = {}
    runs = {**operator.rivals, **operator.ours}
    for name, run in runs.items():
        try:
            outcomes[name] = run()
        except Exception as reason:  # a contender that fails spoils its own row only
            failures[name] = f"{type(reason).__name__}: {reason}".splitlines()[0]
    oracle = outcomes.get(oracle_name)
    errors = {} if oracle is None else {name: operator.error(got, oracle) for name, got in outcomes.items()}
    timed = {name: run for name, run in runs.items() if name in outcomes}
    del outcomes
    seconds = interleaved_seconds(timed, device=CPU, budget_s=budget_s, on_round=on_round)
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    right = {name: error <= operator.allowed for name, error in errors.items()}
    floor_s = operator.products_flops / rate
    return [
        {
            "case": operator.name,
            "size": operator.size,
            "contender": name,
            "role": "ours" if name in operator.ours else "rival",
            "seconds": seconds.get(name, []),
            "median_s": medians.get(name),
            "quartiles_s": np.quantile(seconds[name], [0.25, 0.75]).tolist() if name in seconds else None,
            "error": errors.get(name),
            "error_allowed": operator.allowed,
            "right": right.get(name),
            "failure": failures.get(name),
            "floor_s": floor_s or None,
            "to_floor": medians[name] / floor_s if floor_s and right.get(name) else None,
            "speedups": {
                rival: medians[rival] / medians[name]
                for rival in operator.rivals
                if name in operator.ours and right.get(name) and right.get(rival)
            },
        }
        for name in runs
    ]


HEAD = ["operator", "size", "contender", "median (quartiles) ms", "× floor", "faster", "error (allowed)"]


def markdown(result: dict[str, Any]) -> str:
    """A table under a line on the machine."""
    return "\n".join(
        [
            f"# Operators: {result['machine']['processor']}, {result['date']}",
            "",
            machine_line(result["machine"], []),
            "",
            "Times of one interleaved run per case. The first contender of a case is what the others are "
            "checked against; no ratio is given for a row whose error is above the allowed one. `floor` is "
            "the time of the matrix products at the rate of square products taken in the same run.",
            "",
            *table(
                [
                    "operator",
                    "size",
                    "contender",
                    "median (quartiles) ms",
                    "× floor",
                    "faster",
                    "error (allowed)",
                ],
                result["times"],
                _cells,
            ),
            "",
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    if row["failure"]:
        took, error = row["failure"].replace("|", "\\|"), "–"
    else:
        low, high = row["quartiles_s"]
        took = f"{milliseconds(row['median_s'])} ({milliseconds(low)} to {milliseconds(high)})"
        error = "not checked"
        if row["right"] is not None:
            error = f"{row['error']:.1e} ({row['error_allowed']:g}){'' if row['right'] else ' **WRONG**'}"
    return [
        row["case"],
        row["size"],
        row["contender"],
        took,
        "–" if row["to_floor"] is None else f"{row['to_floor']:.2f}",
        ", ".join(f"{ratio:.2f} × {rival}" for rival, ratio in row["speedups"].items()) or "–",
        error,
    ]


def _places(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) degrees, evenly on the sphere."""
    return np.degrees(np.stack([np.arcsin(rng.uniform(-1, 1, n)), rng.uniform(-np.pi, np.pi, n)], axis=1))
