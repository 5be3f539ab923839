"""`python -m benchmarks.crossview`: what neighbours in a batch bring, on a generated world of two views.

A place is a ring of eight coloured sectors. The panorama unrolls it, the satellite image shows it from above;
both are noisy. The places of a town share red and green, the strong colours; blue, the weak one, is each
place's own: between towns a glance will do, within a town the details decide. A random batch seldom holds two
places of a town. Towns of training and test differ. Every contender trains the same small network for the
same number of steps; recall at 1 is over all test places. A benchmark that was stopped goes on after the last
finished run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from benchmarks.machine import describe
from benchmarks.table import machine_line, table, verdict
from geoclip.crossview.retrieval import retrieval_metrics
from geoclip.sampling import EpochBatchSampler, geographic_neighbours, similarity_neighbours
from semivario_kernels import NegativePolicy, semivariogram_info_nce

RANDOM, NEIGHBOURS = "random", "neighbours"
SIMILARITY, BOTH = "random, then similarity", "neighbours, then similarity"
CONTENDERS = (RANDOM, NEIGHBOURS, SIMILARITY, BOTH)
REPLACED_EVERY = 4  # epochs
BAR_SHARE = 0.02
HEAD = [
    "batches",
    "R@1, mean of seeds",
    "R@1 of each seed",
    "beats random (every seed)",
    "mean neighbour, km",
]
HEAD += ["sampler ms a step", "step ms", "share", "new neighbours, s"]


class World(NamedTuple):
    """Sizes; `detail` and `noise` are standard deviations, the towns' colours having 1."""

    towns: int = 512
    test_towns: int = 128
    places_per_town: int = 4
    detail: float = 0.15
    noise: float = 0.1
    epochs: int = 6
    batch_size: int = 16
    seeds: int = 3


QUICK = World(towns=6, test_towns=3, places_per_town=16, epochs=5, batch_size=16, seeds=1)


class Places(NamedTuple):
    panorama: torch.Tensor  # (N, 3, 8, 32)
    satellite: torch.Tensor  # (N, 3, 16, 16)
    latlon: np.ndarray


def make_places(world: World, towns: int, rng: np.random.Generator) -> Places:
    n = towns * world.places_per_town
    town = np.repeat(np.arange(towns), world.places_per_town)
    # red and green are the town's, blue is the place's
    sectors = np.concatenate(
        (rng.normal(size=(towns, 2, 8))[town], world.detail * rng.normal(size=(n, 1, 8))), axis=1
    )
    centres = np.column_stack(
        [np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, towns))), rng.uniform(-180, 180, towns)]
    )
    latlon = centres[town] + rng.normal(scale=0.02, size=(n, 2))
    columns = (np.arange(32) + 0.5) / 32
    panorama = _around(sectors, columns)[:, :, None] * np.linspace(0.5, 1, 8)[:, None]
    up, right = np.meshgrid(7.5 - np.arange(16), np.arange(16) - 7.5, indexing="ij")
    turn = (np.arctan2(right, up) / (2 * np.pi) + 0.5) % 1  # the panorama's middle column looks north
    satellite = _around(sectors, turn) * np.minimum(1, np.hypot(up, right) / 6)
    views = (v + world.noise * rng.normal(size=v.shape) for v in (panorama, satellite))
    return Places(*(torch.from_numpy(v).float() for v in views), latlon)


def _around(sectors: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(N, 3, *turn.shape) colours at fractions of a turn, linear between the sectors' middles."""
    position = turn * 8 - 0.5
    low = np.floor(position).astype(int)
    share = position - low
    return sectors[:, :, low % 8] * (1 - share) + sectors[:, :, (low + 1) % 8] * share


class Network(nn.Module):
    """Shared by both views but for the last pooling grid, which keeps directions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.GELU()
        )
        self.head = nn.Sequential(nn.Linear(32 * 64, 128), nn.GELU(), nn.Linear(128, 64))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolutions(images).flatten(1))


def run(world: World, contender: str, seed: int) -> dict[str, Any]:
    """Train and test one network."""
    rng = np.random.default_rng((11, seed))
    train, test = make_places(world, world.towns, rng), make_places(world, world.test_towns, rng)
    torch.manual_seed(seed)
    network = Network()
    options = {"nearest": world.batch_size // 4, "further": world.batch_size // 4, "seed": seed}
    table = (
        None if contender in (RANDOM, SIMILARITY) else geographic_neighbours(train.latlon, world.batch_size)
    )
    sampler = EpochBatchSampler(
        len(train.latlon), world.batch_size, neighbours=table, rank=0, world_size=1, **options
    )
    steps = world.epochs * len(sampler)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    sampling_s = training_s = replacing_s = 0.0
    cover = []
    for epoch in range(world.epochs):
        if contender in (SIMILARITY, BOTH) and epoch and epoch % REPLACED_EVERY == 0:
            begin = time.perf_counter()
            x, y = (embed(network, views) for views in (train.panorama, train.satellite))
            sampler.set_neighbours(similarity_neighbours(x, world.batch_size, references=y))
            replacing_s += time.perf_counter() - begin
        begin = time.perf_counter()
        sampler.set_epoch(epoch)
        batches = [torch.tensor(batch) for batch in sampler]
        sampling_s += time.perf_counter() - begin
        cover.append(sampler.coverage(train.latlon).mean_neighbour_km)
        begin = time.perf_counter()
        for rows in batches:
            x, y = network(train.panorama[rows]), network(train.satellite[rows])
            loss = semivariogram_info_nce(
                x,
                y,
                None,
                None,
                network.logit_scale.exp(),
                policy=NegativePolicy.none(),
                label_smoothing=0.1,
                symmetric=True,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        training_s += time.perf_counter() - begin
    labels = torch.arange(len(test.latlon))
    metrics = retrieval_metrics(embed(network, test.panorama), embed(network, test.satellite), labels, labels)
    return {
        "contender": contender,
        "seed": seed,
        "steps": steps,
        "recall@1": metrics["recall@1"],
        "neighbour_km": float(np.mean(cover)),
        "sampling_ms": sampling_s / steps * 1e3,
        "step_ms": training_s / steps * 1e3,
        "replacing_s": replacing_s,
    }


@torch.no_grad()
def embed(network: Network, views: torch.Tensor) -> torch.Tensor:
    return normalize(torch.cat([network(some) for some in views.split(256)]), dim=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossview", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny world, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/benchmark-crossview"), help="folder of the finished runs"
    )
    options = parser.parse_args(arguments)
    world = QUICK if options.quick else World()
    machine = describe(torch.device("cpu"))
    options.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(world.seeds):
        for number, contender in enumerate(CONTENDERS):
            file = options.work / f"{number}-{seed}.json"
            made = json.loads(file.read_text()) if file.exists() else None
            if made is None or made["world"] != list(world):
                print(f"{contender}, seed {seed} …", file=sys.stderr)
                made = {"world": list(world), **run(world, contender, seed)}
                file.write_text(json.dumps(made))
            runs.append(made)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "world": world._asdict(),
        "runs": runs,
    }
    file = options.out / f"crossview-{result['date']}{'-quick' * options.quick}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    file.with_suffix(".md").write_text(text)
    print(text)
    return 0


def markdown(result: dict[str, Any]) -> str:
    """The table under a line on the machine and one on the world."""
    runs, world = result["runs"], result["world"]
    rows = []
    for contender in CONTENDERS:
        own = [run for run in runs if run["contender"] == contender]
        plain = [run for run in runs if run["contender"] == RANDOM]
        mean = {
            name: float(np.mean([run[name] for run in own]))
            for name in own[0]
            if name not in ("contender", "world")
        }
        beats = [a["recall@1"] > b["recall@1"] for a, b in zip(own, plain, strict=True)]
        share = mean["sampling_ms"] / mean["step_ms"]
        rows.append({**mean, "contender": contender, "each": own, "beats": beats, "share": share})
    bars = [all(row["beats"]) for row in rows[1:]] + [row["share"] < BAR_SHARE for row in rows]
    return "\n".join(
        [
            f"# Batches of neighbours, cross-view: {result['machine']['processor']}, {result['date']}",
            "",
            machine_line(result["machine"], bars),
            "",
            f"Generated world: {world['towns']} towns of {world['places_per_town']} places in training, "
            f"{world['test_towns']} others in the test. {runs[0]['steps']} steps of "
            f"{world['batch_size']} pairs each; symmetric InfoNCE, label smoothing 0.1. The sampler's time "
            "is that of its batches. The step is a small network's: a larger one only lowers the share.",
            "",
            *table(HEAD, rows, _cells),
            "",
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["contender"],
        f"{row['recall@1']:.3f}",
        ", ".join(f"{run['recall@1']:.3f}" for run in row["each"]),
        "–" if row["contender"] == RANDOM else verdict(all(row["beats"])),
        f"{row['neighbour_km']:.3g}",
        f"{row['sampling_ms']:.3f}",
        f"{row['step_ms']:.3g}",
        f"{row['share']:.2%} (< {BAR_SHARE:.0%}: {verdict(row['share'] < BAR_SHARE)})",
        f"{row['replacing_s']:.2g}" if row["replacing_s"] else "–",
    ]


if __name__ == "__main__":
    sys.exit(main())
