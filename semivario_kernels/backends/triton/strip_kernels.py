# mypy: ignore-errors
"""The epilogues between the vendor's matrix products, and what follows them; launched by `strip_epilogue`.

    strip_forward   grid (row blocks, column splits). A program owns BLOCK_R rows × BLOCK_C·STEPS columns of
                    a tile and walks it by blocks: reads dot (4 B a pair) and v̂·u (2 or 4), writes the logits
                    over dot (4 B), and a or f (4 B) for the policies penalty and rectify; keeps the rows'
                    online sums in registers, one for every element of a block, reduced once at the end, and
                    writes them to its own slot.
    column_sums     grid (column blocks, row splits). The sums of strip_forward for the columns of a finished
                    tile: reads 4 B a pair, 8 with f.
    merge_slots     grid (vector blocks). Merges the slots' float32 sums of a row or column in float64, in one
                    fixed order: reads 24 B a slot and vector, writes 48 B a vector.
    strip_gradient  grid (row blocks, column blocks). Reads the logits (4 B; 8 with a or f), writes A in the
                    features' dtype (2 or 4 B).
    project_rows    grid (row blocks). g → scale·(g − x̂⟨x̂, g⟩) of a gradient's rows: reads 4 + 2 B an
                    element twice (the second time from the cache), writes 2 B.

No program writes what another reads, and nothing is added atomically: all runs are equal bit for bit.
Pointers to columns come already moved to the tile's first one, so that their alignment is known.
"""

import triton
import triton.language as tl

from semivario_kernels.backends.triton.arithmetic import LOG2_E, block_logits, exp, load_numbers

EMPTY = tl.constexpr(-1e38)  # a maximum over nothing: finite, so that −∞ minus it is no NaN
SUMS = tl.constexpr(6)  # max, Σexp(l − max), Σl, Σf, Σf·l, l of the positive
FLOAT16_MAX = tl.constexpr(65504.0)


@triton.jit
def add_online(top, total, logits):
    """Return the running maximum and Σexp(l − maximum), element by element, one exponential each."""
    step = logits - top
    shrink = tl.exp2(-tl.abs(step) * LOG2_E)
    total = tl.where(step > 0.0, total * shrink + 1.0, total + shrink)
    return tl.maximum(top, logits), total


@triton.jit
def reduce_online(top, total, AXIS: tl.constexpr):
    """Return maximum and Σexp(l − maximum) along one axis."""
    highest = tl.max(top, axis=AXIS)
    return highest, tl.sum(total * exp(top - tl.expand_dims(highest, AXIS)), axis=AXIS)


@triton.jit
def store_sums(slot, stride, index, mask, top, total, logit_sum, soft_sum, soft_logit_sum, positive_logit):
    """Write the six sums of a slot."""
    tl.store(slot + index, tl.where(top == EMPTY, float("-inf"), top), mask=mask)
    slot += stride
    tl.store(slot + index, total, mask=mask)
    slot += stride
    tl.store(slot + index, logit_sum, mask=mask)
    slot += stride
    tl.store(slot + index, soft_sum, mask=mask)
    slot += stride
    tl.store(slot + index, soft_logit_sum, mask=mask)
    slot += stride
    tl.store(slot + index, positive_logit, mask=mask)


@triton.jit(do_not_specialize=["rows", "columns", "first_column", "first_slot"])
def strip_forward(
    dot,
    dot_stride,
    vu,
    vu_stride,
    extra,
    extra_stride,
    slots,
    slots_stride,
    p,
    q,
    q_stride,
    inverse_y,
    image_v,
    inverse_u,
    targets,
    scale,
    parameters,
    rows,
    columns,
    first_column,
    first_slot,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    MAPPED: tl.constexpr,
    STATISTICS: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Turn dot products into logits in place, and sum them per row."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < rows
    row_offset = row.to(tl.int64)[:, None]
    target = tl.load(targets + row, mask=row_mask, other=-1) - first_column
    s = tl.load(scale)
    numbers = load_numbers(parameters, KINDS)
    px, py, pz = 0.0, 0.0, 0.0
    if POLICY != "none":
        position = p + row_offset * 3
        px = tl.load(position, mask=row_mask[:, None], other=0.0)
        py = tl.load(position + 1, mask=row_mask[:, None], other=0.0)
        pz = tl.load(position + 2, mask=row_mask[:, None], other=0.0)
    if SOURCE == "embeddings":
        no_image = tl.load(image_v + row, mask=row_mask, other=0.0)[:, None] == 0.0
    if STATISTICS:
        top = tl.full((BLOCK_R, BLOCK_C), EMPTY, tl.float32)
        total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        positive_logit = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        logit_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        soft_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        soft_logit_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    first = tl.program_id(1) * (BLOCK_C * STEPS)
    for step in range(STEPS):
        column = first + step * BLOCK_C + tl.arange(0, BLOCK_C)
        column_mask = column < columns
        mask = row_mask[:, None] & column_mask[None, :]
        place = row_offset * dot_stride + column[None, :]
        # outside is dead, like an excluded pair
        cos = tl.load(dot + place, mask=mask, other=float("-inf"))
        cos *= tl.load(inverse_y + column, mask=column_mask, other=1.0)[None, :]
        positive = target[:, None] == column[None, :]
        if POLICY != "none":
            qx = tl.load(q + column, mask=column_mask, other=0.0)[None, :]
            qy = tl.load(q + q_stride + column, mask=column_mask, other=0.0)[None, :]
            qz = tl.load(q + q_stride + q_stride + column, mask=column_mask, other=0.0)[None, :]
        else:
            qx, qy, qz = 0.0, 0.0, 0.0
        if SOURCE == "embeddings":
            inverse = tl.load(inverse_u + column, mask=column_mask, other=0.0)[None, :]
            # four at a time as for dot, or a shorter dtype's wider layout is converted in every step
            vu_place = tl.max_contiguous(row_offset * vu_stride + column[None, :], (1, 4))
            cos_vu = tl.load(vu + vu_place, mask=mask, other=0.0).to(tl.float32) * inverse
            blank = no_image | (inverse == 0.0)
        else:
            cos_vu = 0.0
            blank = False
        logits, a, f = block_logits(
            cos, cos_vu, s, positive, blank, px, py, pz, qx, qy, qz, numbers,
            POLICY, KINDS, CHORD, SOURCE, FAST, MAPPED,
        )  # fmt: skip
        tl.store(dot + place, logits, mask=mask)
        if POLICY == "penalty":
            tl.store(extra + row_offset * extra_stride + column[None, :], a, mask=mask)
        if POLICY == "rectify":
            tl.store(extra + row_offset * extra_stride + column[None, :], f, mask=mask)
        if STATISTICS:
            top, total = add_online(top, total, logits)
            live = tl.where(logits == float("-inf"), 0.0, logits)
            positive_logit += tl.where(positive, live, 0.0)
            if SMOOTHING:
                logit_sum += live
            if POLICY == "rectify":
                soft_sum += f
                soft_logit_sum += f * live
    if STATISTICS:
        top, total = reduce_online(top, total, 1)
        slot = slots + (first_slot + tl.program_id(1)).to(tl.int64) * SUMS * slots_stride
        store_sums(
            slot,
            slots_stride,
            row,
            row_mask,
            top,
            total,
            tl.sum(logit_sum, axis=1),
            tl.sum(soft_sum, axis=1),
            tl.sum(soft_logit_sum, axis=1),
            tl.sum(positive_logit, axis=1),
        )


@triton.jit(do_not_specialize=["rows", "columns", "first_column"])
def column_sums(
    logits,
    logits_stride,
    soft,
    soft_stride,
    slots,
    slots_stride,
    targets,
    rows,
    columns,
    first_column,
    SOFT: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum a tile of logits per column."""
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    column_mask = column < columns
    top = tl.full((BLOCK_R, BLOCK_C), EMPTY, tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    positive_logit = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    logit_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    soft_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    soft_logit_sum = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    first = tl.program_id(1) * (BLOCK_R * STEPS)
    for step in range(STEPS):
        row = first + step * BLOCK_R + tl.arange(0, BLOCK_R)
        row_mask = row < rows
        mask = row_mask[:, None] & column_mask[None, :]
        row_offset = row.to(tl.int64)[:, None]
        block = tl.load(logits + row_offset * logits_stride + column[None, :], mask=mask, other=float("-inf"))
        target = tl.load(targets + row, mask=row_mask, other=-1) - first_column
        top, total = add_online(top, total, block)
        live = tl.where(block == float("-inf"), 0.0, block)
        positive_logit += tl.where(target[:, None] == column[None, :], live, 0.0)
        if SMOOTHING:
            logit_sum += live
        if SOFT:
            f = tl.load(soft + row_offset * soft_stride + column[None, :], mask=mask, other=0.0)
            soft_sum += f
            soft_logit_sum += f * live
    top, total = reduce_online(top, total, 0)
    slot = slots + tl.program_id(1).to(tl.int64) * SUMS * slots_stride
    store_sums(
        slot,
        slots_stride,
        column,
        column_mask,
        top,
        total,
        tl.sum(logit_sum, axis=0),
        tl.sum(soft_sum, axis=0),
        tl.sum(soft_logit_sum, axis=0),
        tl.sum(positive_logit, axis=0),
    )


@triton.jit(do_not_specialize=["count", "slot_count"])
def merge_slots(
    slots,
    slots_stride,
    statistics,
    statistics_stride,
    count,
    slot_count,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
):
    """Merge the slots' sums into (6, n) float64, on top of those standing there with ACCUMULATE."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    top = tl.full((BLOCK,), float("-inf"), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    logit_sum = tl.zeros((BLOCK,), tl.float64)
    soft_sum = tl.zeros((BLOCK,), tl.float64)
    soft_logit_sum = tl.zeros((BLOCK,), tl.float64)
    positive_logit = tl.zeros((BLOCK,), tl.float64)
    place = statistics + index
    if ACCUMULATE:
        top = tl.load(place, mask=mask, other=float("-inf"))
        place += statistics_stride
        total = tl.load(place, mask=mask, other=0.0)
        place += statistics_stride
        logit_sum = tl.load(place, mask=mask, other=0.0)
        place += statistics_stride
        soft_sum = tl.load(place, mask=mask, other=0.0)
        place += statistics_stride
        soft_logit_sum = tl.load(place, mask=mask, other=0.0)
        place += statistics_stride
        positive_logit = tl.load(place, mask=mask, other=0.0)
    for first in range(0, slot_count, BLOCK_SLOTS):
        slot = first + tl.arange(0, BLOCK_SLOTS)
        here = (slot < slot_count)[:, None] & mask[None, :]
        source = slots + slot.to(tl.int64)[:, None] * SUMS * slots_stride + index[None, :]
        tops = tl.load(source, mask=here, other=float("-inf")).to(tl.float64)
        source += slots_stride
        totals = tl.load(source, mask=here, other=0.0).to(tl.float64)
        highest = tl.maximum(top, tl.max(tops, axis=0))
        finite = tl.where(highest == float("-inf"), 0.0, highest)  # nothing may be alive yet
        total = total * tl.exp(top - finite) + tl.sum(totals * tl.exp(tops - finite[None, :]), axis=0)
        top = highest
        source += slots_stride
        logit_sum += tl.sum(tl.load(source, mask=here, other=0.0).to(tl.float64), axis=0)
        source += slots_stride
        soft_sum += tl.sum(tl.load(source, mask=here, other=0.0).to(tl.float64), axis=0)
        source += slots_stride
        soft_logit_sum += tl.sum(tl.load(source, mask=here, other=0.0).to(tl.float64), axis=0)
        source += slots_stride
        positive_logit += tl.sum(tl.load(source, mask=here, other=0.0).to(tl.float64), axis=0)
    place = statistics + index
    tl.store(place, top, mask=mask)
    place += statistics_stride
    tl.store(place, total, mask=mask)
    place += statistics_stride
    tl.store(place, logit_sum, mask=mask)
    place += statistics_stride
    tl.store(place, soft_sum, mask=mask)
    place += statistics_stride
    tl.store(place, soft_logit_sum, mask=mask)
    place += statistics_stride
    tl.store(place, positive_logit, mask=mask)


@triton.jit
def side_gradient(logits, mass, log_sum_exp, weight, hard, smooth):
    """Return w·(exp(l − lse) − T)."""
    return weight * (exp(logits - log_sum_exp) - (hard * mass + smooth))


@triton.jit(do_not_specialize=["rows", "columns", "first_column"])
def strip_gradient(
    logits,
    logits_stride,
    extra,
    extra_stride,
    out,
    out_stride,
    inverse_y,
    targets,
    row_log_sum_exp,
    row_weight,
    row_hard,
    row_smooth,
    column_log_sum_exp,
    column_weight,
    column_hard,
    column_smooth,
    rows,
    columns,
    first_column,
    POLICY: tl.constexpr,
    BOTH_SIDES: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Turn logits into A = g·a/|y|, in place or in a shorter dtype."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row_mask, column_mask = row < rows, column < columns
    mask = row_mask[:, None] & column_mask[None, :]
    row_offset = row.to(tl.int64)[:, None]
    block = tl.load(logits + row_offset * logits_stride + column[None, :], mask=mask, other=float("-inf"))
    target = tl.load(targets + row, mask=row_mask, other=-1) - first_column
    positive = target[:, None] == column[None, :]
    factor = tl.load(inverse_y + column, mask=column_mask, other=0.0)[None, :]
    mass = tl.where(positive, 1.0, 0.0)
    if POLICY == "rectify":
        mass += tl.load(extra + row_offset * extra_stride + column[None, :], mask=mask, other=0.0)
    g = side_gradient(
        block,
        mass,
        tl.load(row_log_sum_exp + row, mask=row_mask, other=0.0)[:, None],
        tl.load(row_weight + row, mask=row_mask, other=0.0)[:, None],
        tl.load(row_hard + row, mask=row_mask, other=0.0)[:, None],
        tl.load(row_smooth + row, mask=row_mask, other=0.0)[:, None],
    )
    if BOTH_SIDES:
        g += side_gradient(
            block,
            mass,
            tl.load(column_log_sum_exp + column, mask=column_mask, other=0.0)[None, :],
            tl.load(column_weight + column, mask=column_mask, other=0.0)[None, :],
            tl.load(column_hard + column, mask=column_mask, other=0.0)[None, :],
            tl.load(column_smooth + column, mask=column_mask, other=0.0)[None, :],
        )
    if POLICY == "penalty":
        factor = factor * tl.load(extra + row_offset * extra_stride + column[None, :], mask=mask, other=0.0)
    a = tl.where(block == float("-inf"), 0.0, g * factor)
    if out.dtype.element_ty == tl.float16:
        a = tl.clamp(a, -FLOAT16_MAX, FLOAT16_MAX, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + row_offset * out_stride + column[None, :], a.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def project_rows(
    features,
    feature_row_stride,
    feature_column_stride,
    inverse,
    gradient,
    gradient_stride,
    scale,
    out,
    out_stride,
    along,
    rows,
    dims,
    PROJECT: tl.constexpr,
    DIVIDE: tl.constexpr,
    WRITE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write scale·(g − x̂⟨x̂, g⟩), times 1/|x| with DIVIDE, and ⟨x̂, g⟩."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < rows
    s = tl.load(scale)
    length = tl.full((BLOCK_R,), 1.0, tl.float32)
    if PROJECT:
        length = tl.load(inverse + row, mask=row_mask, other=0.0)
    products = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    for first in range(0, dims, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        mask = row_mask[:, None] & (column < dims)[None, :]
        x = tl.load(
            features
            + row[:, None] * feature_row_stride
            + column.to(tl.int64)[None, :] * feature_column_stride,
            mask=mask,
            other=0.0,
        ).to(tl.float32)
        g = tl.load(gradient + row[:, None] * gradient_stride + column[None, :], mask=mask, other=0.0)
        products += x * g
    projection = tl.sum(products, axis=1) * length
    tl.store(along + row, projection, mask=row_mask)
    if WRITE:
        for first in range(0, dims, BLOCK_D):
            column = first + tl.arange(0, BLOCK_D)
            mask = row_mask[:, None] & (column < dims)[None, :]
            g = tl.load(gradient + row[:, None] * gradient_stride + column[None, :], mask=mask, other=0.0)
            if PROJECT:
                x = tl.load(
                    features
                    + row[:, None] * feature_row_stride
                    + column.to(tl.int64)[None, :] * feature_column_stride,
                    mask=mask,
                    other=0.0,
                ).to(tl.float32)
                g = g - (projection * length)[:, None] * x
                if DIVIDE:
                    g = g * length[:, None]
            tl.store(
                out + row[:, None] * out_stride + column[None, :], (g * s).to(out.dtype.element_ty), mask=mask
            )
