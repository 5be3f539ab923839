"""The CPU's ranking on every instruction set: tiles inside NaN-filled storage, ties, NaN, whole galleries."""

import pytest
import torch
from epilogue_cases import Surrounded
from native_isa import RUNNABLE, SKIP, select

from semivario_kernels.backends import native_ranking
from semivario_kernels.backends.native_epilogue import native_extension

pytestmark = SKIP


@pytest.fixture(params=RUNNABLE, autouse=True)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    select(request.param, monkeypatch)
    return request.param


def ranked(scores: torch.Tensor, k: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best k of every row, from tiles of `width` columns inside NaN-filled storage."""
    n, m = scores.shape
    best = torch.full((n + 2, k), -1, dtype=torch.int64)  # a row before and one behind
    values = torch.full((n, k), torch.nan)
    for first in range(0, m, width):
        tile = Surrounded(scores[:, first : first + width]).view
        place = (1, n, first, tile.shape[1])
        native_extension().rank_tile(
            *place, tile.data_ptr(), tile.stride(0), best.data_ptr(), k, torch.get_num_threads()
        )
    keys = best[1].data_ptr()
    native_extension().read_ranking(keys, n, k, values.data_ptr(), keys, torch.get_num_threads())
    assert best[0].eq(-1).all()
    assert best[-1].eq(-1).all()
    return values, best[1:-1]


@pytest.mark.parametrize("k", [1, 2, 10, 100, 1003])
@pytest.mark.parametrize("width", [7, 64, 200, 1003])
def test_scores_with_ties_equal_a_stable_sort(k: int, width: int):
    scores = torch.randn(13, 1003, generator=torch.Generator().manual_seed(k))
    scores[4:] = (20 * scores[4:]).round() / 4  # hundreds of ties
    scores[5, ::3] = -0.0
    scores[6] = 1.0
    scores[7] = torch.arange(1003.0)  # every entry beats all before it
    scores[8, ::2], scores[8, 1::5] = torch.inf, -torch.inf
    expected, order = torch.sort(scores, dim=1, descending=True, stable=True)
    values, indices = ranked(scores, k, width)
    assert values.equal(expected[:, :k])
    assert indices.equal(order[:, :k])


@pytest.mark.parametrize("k", [1, 3, 4, 300])
@pytest.mark.parametrize("width", [64, 97, 300])
def test_nan_comes_before_all_numbers(k: int, width: int):
    scores = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    scores[1, [5, 130, 299]] = torch.nan
    scores[2] = torch.nan
    scores[3, 70], scores[3, 71] = torch.inf, -torch.nan
    expected, order = torch.sort(scores, dim=1, descending=True, stable=True)
    values, indices = ranked(scores, k, width)
    assert indices.equal(order[:, :k])
    torch.testing.assert_close(values, expected[:, :k], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "m", "k"), [(1, 9001, 10), (1030, 2100, 3), (40, 611, 611)])
def test_topk_of_whole_numbers_is_exact(n: int, m: int, k: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(n)
    x, y = (torch.randint(-4, 5, (rows, 6), generator=generator) for rows in (n, m))
    apart = torch.full((m, 9), torch.nan, dtype=dtype)
    apart[:, 2:8] = y
    values, indices = native_ranking.topk_gallery(x.to(dtype), apart[:, 2:8], k)
    expected, order = torch.sort(x @ y.T, dim=1, descending=True, stable=True)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert values.equal(expected[:, :k].to(values.dtype))
    assert indices.equal(order[:, :k])


def test_the_number_of_threads_changes_nothing():
    scores = torch.randn(37, 2000, generator=torch.Generator().manual_seed(0)).mul(9).round()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ranked(scores, 600, 1000)
        torch.set_num_threads(3)
        together = ranked(scores, 600, 1000)
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))
