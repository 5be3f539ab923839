"""The batches of a whole run, by the sampler's name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.training import Training
from benchmarks.accuracy.world import World
from geoclip.sampling import (
    EpochBatchSampler,
    NeighbourBatchSampler,
    RandomBatchSampler,
    geographic_neighbours,
    similarity_neighbours,
    surprise_neighbours,
)

Rows = NDArray[np.int32]
_CANDIDATES = 32  # neighbours in a table; a batch takes the first that are still to come


@lru_cache(maxsize=16)
def batches(world: World, sampler: str, training: Training, seed: int) -> Rows:
    """Rows of all steps, (steps, batch_size); the contestants of a seed share them.

    Args:
        world: the photos.
        sampler: one of `SAMPLERS`.
        training: sizes and steps.
        seed: of the sampler.
    """
    batch = SAMPLERS[sampler](world, training.batch_size, training.neighbours, seed)
    return np.stack([batch(step) for step in range(training.steps)]).astype(np.int32)


Batch = Callable[[int], NDArray[np.int64]]


def _random(world: World, batch_size: int, neighbours: int, seed: int) -> Batch:
    return RandomBatchSampler(len(world.train), batch_size, seed=seed).batch


def _neighbours(world: World, batch_size: int, neighbours: int, seed: int) -> Batch:
    sampler = NeighbourBatchSampler(world.train_latlon, batch_size, neighbours=neighbours, seed=seed)
    return sampler.batch


def _geographic(world: World, batch_size: int, neighbours: int, seed: int) -> Batch:
    return _from_tables(world, batch_size, neighbours, seed, (_geographic_table(world), None))


def _similar(world: World, batch_size: int, neighbours: int, seed: int) -> Batch:
    return _from_tables(world, batch_size, neighbours, seed, (_similarity_table(world), None))


def _surprise(world: World, batch_size: int, neighbours: int, seed: int) -> Batch:
    return _from_tables(world, batch_size, neighbours, seed, _surprise_tables(world))


def _from_tables(
    world: World, batch_size: int, neighbours: int, seed: int, tables: tuple[Rows, Rows | None]
) -> Batch:
    nearest, avoid = tables
    return EpochBatchSampler(
        len(world.train),
        batch_size,
        neighbours=nearest,
        avoid=avoid,
        nearest=neighbours,
        further=0,
        seed=seed,
        rank=0,
        world_size=1,
    ).batch


# the tables of one world serve all seeds; worlds are compared by identity
@lru_cache(maxsize=1)
def _geographic_table(world: World) -> Rows:
    return geographic_neighbours(world.train_latlon, _CANDIDATES)


@lru_cache(maxsize=1)
def _similarity_table(world: World) -> Rows:
    return similarity_neighbours(world.train.float(), _CANDIDATES)


@lru_cache(maxsize=1)
def _surprise_tables(world: World) -> tuple[Rows, Rows]:
    tables = surprise_neighbours(
        world.train.float(), world.train_latlon, world.fit.model, _CANDIDATES, candidates=4 * _CANDIDATES
    )
    return tables.hard, tables.false


# "neighbours": random seeds with the nearest places, rows may come again; "geographic", "similar" and
# "surprise" visit every row once per epoch: the nearest, the most alike, or the alike although far together
SAMPLERS: dict[str, Callable[[World, int, int, int], Batch]] = {
    "neighbours": _neighbours,
    "random": _random,
    "geographic": _geographic,
    "similar": _similar,
    "surprise": _surprise,
}
