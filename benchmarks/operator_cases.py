"""The operators beside the loss and the semivariogram, each with its rivals at one size.

Inputs are made so that making them needs no memory worth mentioning beside what they take.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.cases import Sizes
from benchmarks.naive import haversine_km
from semivario_kernels import EARTH_RADIUS_KM, available_backends, pairwise_haversine, topk_gallery

Outcome = np.ndarray
Run = Callable[[], Outcome]


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
        moved_bytes: read and written at the least: every input once, every result once.
        products_flops: FLOPs of the matrix products that cannot be done without.
    """

    name: str
    size: str
    rivals: dict[str, Run]
    ours: dict[str, Run]
    allowed: float
    error: Callable[[Outcome, Outcome], float] = lambda got, oracle: float(np.abs(got - oracle).max())
    moved_bytes: int = 0
    products_flops: int = 0

    @property
    def runs(self) -> dict[str, Run]:
        """All contenders by name, the oracle first."""
        return {**self.rivals, **self.ours}


# queries × gallery of the distances, of top-k (k = 10, D = 512), photos and batch of sampler and reading
SIZES: dict[Sizes, list[tuple[int, int]]] = {
    "quick": [(16, 48)],
    "default": [(1024, 20_000)],
    "full": [(256, 20_000), (1024, 20_000), (1024, 100_000), (4096, 100_000)],
}


@contextmanager
def distances(n: int, m: int) -> Iterator[Operator]:
    """(n, m) great-circle distances in km, in float64 where it is not said."""
    from sklearn.metrics.pairwise import haversine_distances

    rng = np.random.default_rng(0)
    a, b = _places(n, rng), _places(m, rng)
    a_torch, b_torch = torch.from_numpy(a), torch.from_numpy(b)
    a_short, b_short = a_torch.float(), b_torch.float()
    backends = [name for name in available_backends() if name != "reference"]
    fastest = backends[0]
    a_radians, b_radians = np.radians(a), np.radians(b)
    yield Operator(
        "distances",
        f"{n:,} × {m:,}",
        {
            "scikit-learn": lambda: haversine_distances(a_radians, b_radians) * EARTH_RADIUS_KM,
            "naive torch, float32": lambda: haversine_km(a_short, b_short).numpy(),
        },
        {
            name: lambda name=name: pairwise_haversine(a_torch, b_torch, backend=name).numpy()
            for name in backends
        }
        | {f"{fastest}, float32": lambda: pairwise_haversine(a_short, b_short, backend=fastest).numpy()},
        # near the antipode the haversine formula of the oracle itself loses digits, in float64 some metres;
        # a float32 longitude is right to two
        allowed=0.05,
        moved_bytes=16 * (n + m) + 8 * n * m,
    )


@contextmanager
def top_k(n: int, m: int, k: int = 10, d: int = 512) -> Iterator[Operator]:
    """The k best of m gallery entries for each of n queries: their similarities."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, d, generator=generator) for rows in (n, m))
    for features in (x, y):
        features /= features.norm(dim=1, keepdim=True)
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
        moved_bytes=4 * (n + m) * d + 4 * n * k,
        products_flops=2 * n * m * d,
    )


@contextmanager
def neighbour_batch(n: int, m: int, neighbours: int = 7) -> Iterator[Operator]:
    """A batch of n out of m places: random seeds with the places nearest to them."""
    from sklearn.metrics.pairwise import haversine_distances

    from geoclip.sampling import NeighbourBatchSampler

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
        moved_bytes=(16 + 8) * n,  # the places of the batch and its rows, with a tree that is there
    )


@contextmanager
def reading(n: int, m: int, e: int = 768) -> Iterator[Operator]:
    """n random rows out of m embeddings on disk, read as a batch is."""
    from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter

    rng = np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    try:
        with EmbeddingWriter(folder / "store", e, info={}) as writer, open(folder / "rows", "wb") as file:
            for some in np.array_split(np.arange(m), 1 + m // 1000):
                embeddings = rng.standard_normal((len(some), e), dtype=np.float32).astype(np.float16)
                embeddings.tofile(file)
                writer.append(some, _places(len(some), rng), embeddings.astype(np.float32))
        rows = rng.permutation(m)[:n]
        mapped = np.memmap(folder / "rows", dtype=np.float16, mode="r", shape=(m, e))
        store = EmbeddingStore.open(folder / "store")
        yield Operator(
            "reading",
            f"{n:,} of {m:,} rows, E = {e}",
            {"numpy memory map": lambda: np.asarray(mapped[rows], dtype=np.float32)},
            {"EmbeddingStore": lambda: np.asarray(store.read(rows), dtype=np.float32)},
            allowed=0.0,
            moved_bytes=(2 + 4) * n * e,
        )
    finally:
        shutil.rmtree(folder)


Make = Callable[[int, int], AbstractContextManager[Operator]]
OPERATORS: tuple[Make, ...] = (distances, top_k, neighbour_batch, reading)


def _places(n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) degrees, evenly on the sphere."""
    return np.degrees(np.stack([np.arcsin(rng.uniform(-1, 1, n)), rng.uniform(-np.pi, np.pi, n)], axis=1))
