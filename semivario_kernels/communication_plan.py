"""What travels between the ranks of a sharded loss, in which scheme, and how many bytes each rank sends.

One side of the loss travels, the one with fewer bytes; the other side stays where it is. Each rank meets the
travelling side's blocks with its own shard, once for the sums and once for the gradient. Two schemes:

    gather   all blocks come at once (all-gather), results go home at once (all-to-all)
    ring     blocks go from rank to rank while the tiles of the one before are at work; a block's result
             travels one step behind it and comes home with the last step

Ring sends the same bytes as gather and holds two blocks, not all; gather multiplies larger matrices and waits
once. So: gather while the whole side with its gradient is at most GATHERED_BYTES, else ring.

The numbers of a block's fields are bytes a row: features D·b, embeddings E·b', positions 2·8 (float64), and a
result's are 7·8 for sums and 4·D (8·D in float64) for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GATHERED_BYTES = 2**28
FIELD_BYTES = 16  # every field of a block starts at a multiple
SUMS = 7  # float64: max, Σexp(l − max), Σl, Σf, Σf·l, l of the positive, number of live entries
HEADER = 5  # int64 that all ranks tell each other first

Side = Literal["queries", "gallery"]
Scheme = Literal["gather", "ring"]


@dataclass(frozen=True)
class Visit:
    """Blocks of one side meet all ranks.

    Attributes:
        fields: bytes a row of every tensor that a block brings.
        result: bytes a row of what it takes home; 0 for nothing.
    """

    fields: tuple[int, ...]
    result: int = 0

    def block_bytes(self, rows: int) -> int:
        """Bytes of a block."""
        return sum(-(-rows * width // FIELD_BYTES) * FIELD_BYTES for width in self.fields)


@dataclass(frozen=True)
class CommunicationPlan:
    """Who travels, how, and how much.

    Attributes:
        travels: the side whose blocks travel.
        scheme: "gather" or "ring".
        sizes: rows of the travelling side on every rank.
    """

    travels: Side
    scheme: Scheme
    sizes: tuple[int, ...]

    def sent_bytes(self, rank: int, visit: Visit) -> int:
        """Bytes that `rank` sends in a visit; a gather passes every block on to all the others."""
        world = len(self.sizes)
        if self.scheme == "gather":
            block = visit.block_bytes(max(self.sizes)) * (world - 1)
            return block + (sum(self.sizes) - self.sizes[rank]) * visit.result
        passed = (self.sizes[(rank - step) % world] for step in range(world - 1))
        carried = (self.sizes[(rank - step) % world] for step in range(1, world))
        return sum(map(visit.block_bytes, passed)) + sum(carried) * visit.result


@dataclass(frozen=True)
class RowBytes:
    """Bytes a row of one loss's tensors: what the plan is made from.

    Attributes:
        features: of x and y, dims times bytes an element.
        gradient: of ∂x and ∂y as they are added up.
        embeddings: of v and u, 0 without.
        positions: of the queries' and of the gallery's, 0 without.
        excluded: of the list of excluded entries.
        symmetric: whether the columns have sums, too.
    """

    features: int
    gradient: int
    embeddings: int = 0
    positions: tuple[int, int] = (0, 0)
    excluded: int = 0
    symmetric: bool = False

    def sums_visits(self, travels: Side) -> list[Visit]:
        """The visits of the forward pass."""
        sums = SUMS * 8
        if travels == "queries":
            return [Visit(self._query_fields(), sums)]
        if not self.symmetric:
            return [Visit(self._gallery_fields())]
        # sums of the columns; their losses at the positives' queries
        return [Visit(self._gallery_fields(), sums), Visit((8,))]

    def gradient_visits(self, travels: Side, need_dx: bool = True, need_dy: bool = True) -> list[Visit]:
        """The visits of the backward pass."""
        if travels == "queries":
            result = self.gradient if need_dx else 0
            return [Visit((*self._query_fields(), SUMS * 8, 8), result)]
        result = self.gradient if need_dy else 0
        if not self.symmetric:
            return [Visit(self._gallery_fields(), result)]
        # weights of the columns, from the queries; then sums and weights with the gallery
        return [Visit((), 8), Visit((*self._gallery_fields(), SUMS * 8, 8), result)]

    def _query_fields(self) -> tuple[int, ...]:
        return _present(self.features, self.positions[0], self.embeddings, 8, self.excluded)

    def _gallery_fields(self) -> tuple[int, ...]:
        return _present(self.features, self.positions[1], self.embeddings)


def _present(*fields: int) -> tuple[int, ...]:
    return tuple(width for width in fields if width)


def plan_communication(queries: list[int], gallery: list[int], row_bytes: RowBytes) -> CommunicationPlan:
    """The plan of a loss for shards of these sizes, rank by rank; the same on every rank."""

    def visits(side: Side) -> list[Visit]:
        return row_bytes.sums_visits(side) + row_bytes.gradient_visits(side)

    # the sums of a symmetric loss's columns are the gallery's to bring home
    return plan_visits(
        queries, gallery, None if row_bytes.symmetric else visits("queries"), visits("gallery")
    )


def plan_visits(
    queries: list[int],
    gallery: list[int],
    query_visits: list[Visit] | None,
    gallery_visits: list[Visit],
) -> CommunicationPlan:
    """The plan where either side's blocks would make these visits; without any the queries stay."""

    def widths(visits: list[Visit]) -> list[int]:
        return [sum(visit.fields) + visit.result for visit in visits]

    travels: Side = "gallery"
    sizes, visits = gallery, gallery_visits
    if query_visits is not None and sum(queries) * sum(widths(query_visits)) < sum(gallery) * sum(
        widths(gallery_visits)
    ):
        travels, sizes, visits = "queries", queries, query_visits
    whole = sum(sizes) * max(widths(visits))
    return CommunicationPlan(travels, "gather" if whole <= GATHERED_BYTES else "ring", tuple(sizes))
