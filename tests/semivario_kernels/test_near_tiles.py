"""Which tiles a pruned semivariogram meets, against all pairs."""

import math

import pytest
import torch
from places import SPECIAL_PLACES, random_latlon

from semivario_kernels.backends.near_tiles import TILE, AllTiles, NearTiles, TileCaps
from semivario_kernels.geometry import unit_vectors
from semivario_kernels.space_filling import curve_codes


def sorted_axes(n, seed):
    latlon = torch.cat([random_latlon(n - len(SPECIAL_PLACES), seed), torch.tensor(SPECIAL_PLACES).double()])
    unit = unit_vectors(latlon)
    return unit[curve_codes(unit).argsort()].T.contiguous()


def met_pairs(tiles, met_rows, start, stop, m):
    """(rows, m) bool: the pairs that rows start … stop − 1 meet."""
    met = torch.zeros(stop - start, m, dtype=torch.bool)
    for tile, (first, last) in zip(tiles.tolist(), met_rows.tolist(), strict=True):
        met[first:last, tile * TILE : (tile + 1) * TILE] = True
    return met


@pytest.mark.parametrize("block_rows", [128, 1024])
@pytest.mark.parametrize("reach", [0.003, 0.3, 2.0, None])
@pytest.mark.parametrize("triangle", [True, False])
def test_no_near_pair_is_left_out_and_all_met_are_counted(block_rows, reach, triangle):
    rows = sorted_axes(3001, 1)
    columns = rows if triangle else sorted_axes(1111, 2)
    n, m = rows.shape[1], columns.shape[1]
    if reach is None:
        tiles = AllTiles(n, m, triangle)
    else:
        tiles = NearTiles(TileCaps(rows), TileCaps(columns), reach, triangle)
    plan = tiles.plans((256, block_rows))[block_rows]
    gathered = 0
    for number, start in enumerate(range(0, n, block_rows)):
        stop = min(start + block_rows, n)
        found, met_rows = tiles.met(start, stop)
        assert met_rows.dtype == torch.int32
        assert met_rows.is_contiguous()
        met = met_pairs(found, met_rows, start, stop, m)
        counts = torch.ones(stop - start, m, dtype=torch.bool)
        if triangle:
            counts = torch.arange(start, stop)[:, None] < torch.arange(m)
            own = -(-(stop - start) // TILE)
            assert found[:own].tolist() == list(range(start // TILE, start // TILE + own))
        near = rows[:, start:stop].T @ columns >= (-2 if reach is None else math.cos(reach))
        assert (met | ~(near & counts)).all()
        assert plan.pairs[number] == (met & counts).sum()
        gathered += int(met.any(dim=0).sum())
    assert plan.gathered == gathered
    if reach == 0.003 and block_rows == 128:
        assert sum(plan.pairs) < (0.08 if triangle else 0.25) * n * m
