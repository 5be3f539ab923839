from pathlib import Path

import pytest

from benchmarks.scaling import plan
from semivario_kernels.communication_plan import (
    GATHERED_BYTES,
    CommunicationPlan,
    RowBytes,
    Visit,
    plan_communication,
)

ROOT = Path(__file__).parents[2]
ROW = RowBytes(features=1024, gradient=2048, embeddings=1536, positions=(16, 16))


def test_the_document_holds_the_tables_of_the_formulas(monkeypatch):
    monkeypatch.chdir(ROOT)
    document = plan.DOCUMENT.read_text()
    assert plan.written(document) == document


@pytest.mark.parametrize("scheme", ["gather", "ring"])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_equal_shards_are_sent_to_all_the_others(scheme, world):
    rows = 160
    sent = CommunicationPlan("gallery", scheme, (rows,) * world).sent_bytes(0, Visit((64, 16), 2048))
    assert sent == (world - 1) * rows * (64 + 16 + 2048)


def test_every_byte_of_uneven_shards_is_counted_once():
    sizes = (3, 0, 9, 4)
    ring = CommunicationPlan("gallery", "ring", sizes)
    # each of the four blocks passes three ranks on, and so does what it takes home
    assert sum(ring.sent_bytes(rank, Visit((16,), 8)) for rank in range(4)) == 3 * sum(sizes) * (16 + 8)
    gather = CommunicationPlan("gallery", "gather", sizes)
    assert [gather.sent_bytes(rank, Visit((), 8)) for rank in range(4)] == [13 * 8, 16 * 8, 7 * 8, 12 * 8]


def test_the_smaller_side_travels_and_a_large_one_in_a_ring():
    def chosen(n, m, **options):
        made = plan_communication([n // 4] * 4, [m // 4] * 4, RowBytes(**{**vars(ROW), **options}))
        return made.travels, made.scheme

    assert chosen(4096, 4_000_000) == ("queries", "gather")
    assert chosen(4_000_000, 4096) == ("gallery", "gather")
    assert chosen(4_000_000, 5_000_000) == ("queries", "ring")
    assert chosen(40_000, 40_000, symmetric=True) == ("gallery", "gather")
    assert chosen(400_000, 400_000, symmetric=True) == ("gallery", "ring")
    widest = 1024 + 1536 + 16 + 8 + 56 + 8 + 2048  # a query of the backward pass, with its gradient
    most = GATHERED_BYTES // widest // 4 * 4
    assert chosen(most, 4 * most) == ("queries", "gather")
    assert chosen(most + 4, 4 * most) == ("queries", "ring")
