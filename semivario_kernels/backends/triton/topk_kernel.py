# mypy: ignore-errors
"""The K best of every row, from tiles of scores.

Grid: rows × shares of the tile's columns. A program walks its share in blocks, reading 4 bytes a pair, and
keeps the K best of its row as int64 in rising order: the float's bits, put into rising order, above the bits
of 2³¹ − 1 − index. Such keys order by value and then by smaller index, and no two are equal, so that the
result does not depend on how the work is split. A block without a value above the K-th best costs one
comparison a pair.
"""

import triton
import triton.language as tl


@triton.jit
def keep_best(scores, best, row_stride, columns, share, first_index, K: tl.constexpr, BLOCK: tl.constexpr):
    """Merge a tile of `scores` into the K `best` keys, rising, of every row and share of its columns."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    kept_at = best + (row * tl.num_programs(1) + part) * K + tl.arange(0, K)
    kept = tl.load(kept_at)
    lowest = value_of(tl.min(kept))
    scores += row * row_stride
    end = tl.minimum(columns, (part + 1) * share)
    for start in range(part * share, end, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(scores + column, mask=column < end, other=-float("inf"))
        # an equal value comes too late; a NaN, and any value while places are empty, is not <=
        if tl.max(tl.where(value <= lowest, 0, 1)) > 0:
            key = tl.where(column < end, key_of(value, first_index + column), -(2**63))
            # rising against falling: the larger of each two are the K best of both
            kept = tl.sort(tl.maximum(kept, tl.topk(key, K)))
            lowest = value_of(tl.min(kept))
    tl.store(kept_at, kept)


@triton.jit
def key_of(value, index):
    """Return int64 keys that order by value, then by smaller index; a NaN is the largest value."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (rising.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def value_of(key):
    """Return the value in a key; NaN for an empty place."""
    rising = (key >> 32).to(tl.int32)
    return (rising ^ ((rising >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
