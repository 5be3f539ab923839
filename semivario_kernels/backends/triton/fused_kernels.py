# mypy: ignore-errors
"""Forward and gradient without a matrix of pairs in memory; launched by `fused_driver`.

    fused_statistics  grid (own blocks, splits of the other side). A program owns BLOCK_OWN rows of one side
                      and walks its share of the other by BLOCK_OTHER: both products on the tensor cores, the
                      pair arithmetic in registers, online sums per row, written to the program's own slot and
                      merged by `strip_kernels.merge_slots`. 2(D+E) FLOPs a pair; reads D+E elements a row of
                      the other side for every own block, mostly from the second-level cache; writes 24 B a
                      row and split.
    fused_gradient    grid (own blocks, splits, chunks of D). As above, then G = g·a/|other| in the features'
                      dtype times the other side's features into PARTS accumulators of BLOCK_OWN × BLOCK_D:
                      2(D+E)·⌈D/(PARTS·BLOCK_D)⌉ + 2D FLOPs a pair and side; the logits are computed once
                      where one chunk holds D (up to 512 on sm_80 and sm_90 in 16 bits), and twice at D = 512
                      on sm_100, whose tensor memory ends there. With one split it projects and writes the
                      gradient, 2 B an element; with more, or float32 of 16 bits, sums for `merge_gradient`.
    merge_gradient    grid (row blocks, chunks of D). Adds the splits in order, projects, writes.

One kernel serves both sides, since distance and dissimilarity are symmetric: with QUERIES_OWN the own side
are the queries (row sums, ∂x), without it the gallery (column sums, ∂y). ⟨x̂, gx⟩, which the projection and ∂s
need, is Σ g·a·cos and falls out of the tile. Nothing is added atomically: all runs are equal bit for bit.
"""

import triton
import triton.language as tl

from semivario_kernels.backends.triton.arithmetic import block_logits, exp, load_numbers
from semivario_kernels.backends.triton.strip_kernels import (
    EMPTY,
    FLOAT16_MAX,
    SUMS,
    side_gradient,
    store_sums,
)


@triton.jit
def product_tile(
    own_rows,
    own_step,
    own_mask,
    other_rows,
    other_step,
    other_mask,
    dims,
    PRECISION: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the (own, other) inner products of rows given by their first elements' pointers."""
    total = tl.zeros((BLOCK_OWN, BLOCK_OTHER), tl.float32)
    for start in range(0, dims, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < dims)[None, :]
        k = k.to(tl.int64)[None, :]
        a = tl.load(own_rows[:, None] + k * own_step, mask=own_mask[:, None] & inside, other=0.0)
        b = tl.load(other_rows[:, None] + k * other_step, mask=other_mask[:, None] & inside, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def logits_tile(
    own_features,
    own_row_stride,
    own_column_stride,
    other_features,
    other_row_stride,
    other_column_stride,
    dims,
    own_embeddings,
    own_embedding_row_stride,
    own_embedding_column_stride,
    other_embeddings,
    other_embedding_row_stride,
    other_embedding_column_stride,
    embedding_dims,
    own_inverse,
    other_inverse,
    own_image,
    other_image,
    own_places,
    own_places_stride,
    other_places,
    other_places_stride,
    targets,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    excluded,
    scale,
    numbers,
    own,
    own_mask,
    other,
    other_mask,
    QUERIES_OWN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    MAPPED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return l, a, f, cos and which pairs are positive, (own, other) each; cos and l are −∞ where dead."""
    cos = product_tile(
        own_features + own * own_row_stride, own_column_stride, own_mask,
        other_features + other * other_row_stride, other_column_stride, other_mask,
        dims, PRECISION, BLOCK_OWN, BLOCK_OTHER, BLOCK_K,
    )  # fmt: skip
    if NORMALIZE:
        cos *= tl.load(own_inverse + own, mask=own_mask, other=0.0)[:, None]
        cos *= tl.load(other_inverse + other, mask=other_mask, other=0.0)[None, :]
    if SOURCE == "embeddings":
        cos_vu = product_tile(
            own_embeddings + own * own_embedding_row_stride, own_embedding_column_stride, own_mask,
            other_embeddings + other * other_embedding_row_stride, other_embedding_column_stride, other_mask,
            embedding_dims, PRECISION, BLOCK_OWN, BLOCK_OTHER, BLOCK_K,
        )  # fmt: skip
        own_inverse_v = tl.load(own_image + own, mask=own_mask, other=0.0)[:, None]
        other_inverse_v = tl.load(other_image + other, mask=other_mask, other=0.0)[None, :]
        cos_vu *= own_inverse_v * other_inverse_v
        blank = (own_inverse_v == 0.0) | (other_inverse_v == 0.0)
    else:
        cos_vu = 0.0
        blank = False
    if QUERIES_OWN:
        positive = tl.load(targets + own, mask=own_mask, other=-1)[:, None] == other[None, :]
    else:
        positive = tl.load(targets + other, mask=other_mask, other=-1)[None, :] == own[:, None]
    cos = tl.where(own_mask[:, None] & other_mask[None, :], cos, float("-inf"))
    if EXCLUDE:
        for k in range(excluded):
            if QUERIES_OWN:
                place = exclude + own * exclude_row_stride + k * exclude_column_stride
                dead = tl.load(place, mask=own_mask, other=-1)[:, None] == other[None, :]
            else:
                place = exclude + other * exclude_row_stride + k * exclude_column_stride
                dead = tl.load(place, mask=other_mask, other=-1)[None, :] == own[:, None]
            cos = tl.where(dead, float("-inf"), cos)
    if POLICY != "none":
        place = own_places + own
        px = tl.load(place, mask=own_mask, other=0.0)[:, None]
        place += own_places_stride
        py = tl.load(place, mask=own_mask, other=0.0)[:, None]
        place += own_places_stride
        pz = tl.load(place, mask=own_mask, other=0.0)[:, None]
        place = other_places + other
        qx = tl.load(place, mask=other_mask, other=0.0)[None, :]
        place += other_places_stride
        qy = tl.load(place, mask=other_mask, other=0.0)[None, :]
        place += other_places_stride
        qz = tl.load(place, mask=other_mask, other=0.0)[None, :]
    else:
        px, py, pz = 0.0, 0.0, 0.0
        qx, qy, qz = 0.0, 0.0, 0.0
    logits, a, f = block_logits(
        cos, cos_vu, scale, positive, blank, px, py, pz, qx, qy, qz, numbers,
        POLICY, KINDS, CHORD, SOURCE, FAST, MAPPED,
    )  # fmt: skip
    return logits, a, f, cos, positive


@triton.jit(do_not_specialize=["own_count", "other_count", "other_share", "excluded"])
def fused_statistics(
    own_features,
    own_row_stride,
    own_column_stride,
    other_features,
    other_row_stride,
    other_column_stride,
    dims,
    own_embeddings,
    own_embedding_row_stride,
    own_embedding_column_stride,
    other_embeddings,
    other_embedding_row_stride,
    other_embedding_column_stride,
    embedding_dims,
    own_inverse,
    other_inverse,
    own_image,
    other_image,
    own_places,
    own_places_stride,
    other_places,
    other_places_stride,
    targets,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    excluded,
    scale,
    parameters,
    slots,
    slots_stride,
    own_count,
    other_count,
    other_share,
    QUERIES_OWN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    SMOOTHING: tl.constexpr,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    MAPPED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum the logits of every own row over a share of the other side."""
    own = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    own_mask = own < own_count
    top = tl.full((BLOCK_OWN,), EMPTY, tl.float32)
    total = tl.zeros((BLOCK_OWN,), tl.float32)
    logit_sum = tl.zeros((BLOCK_OWN,), tl.float32)
    soft_sum = tl.zeros((BLOCK_OWN,), tl.float32)
    soft_logit_sum = tl.zeros((BLOCK_OWN,), tl.float32)
    positive_logit = tl.zeros((BLOCK_OWN,), tl.float32)
    s = tl.load(scale)
    numbers = load_numbers(parameters, KINDS)
    first = tl.program_id(1).to(tl.int64) * other_share
    last = tl.minimum(first + other_share, other_count)
    for start in range(first, last, BLOCK_OTHER):
        other = start + tl.arange(0, BLOCK_OTHER).to(tl.int64)
        logits, _, f, _, positive = logits_tile(
            own_features, own_row_stride, own_column_stride,
            other_features, other_row_stride, other_column_stride, dims,
            own_embeddings, own_embedding_row_stride, own_embedding_column_stride,
            other_embeddings, other_embedding_row_stride, other_embedding_column_stride, embedding_dims,
            own_inverse, other_inverse, own_image, other_image,
            own_places, own_places_stride, other_places, other_places_stride,
            targets, exclude, exclude_row_stride, exclude_column_stride, excluded, s, numbers,
            own, own_mask, other, other < last,
            QUERIES_OWN, NORMALIZE, EXCLUDE, POLICY, KINDS, CHORD, SOURCE, FAST, PRECISION, MAPPED,
            BLOCK_OWN, BLOCK_OTHER, BLOCK_K,
        )  # fmt: skip
        highest = tl.maximum(top, tl.max(logits, axis=1))
        total = total * exp(top - highest) + tl.sum(exp(logits - highest[:, None]), axis=1)
        top = highest
        live = tl.where(logits == float("-inf"), 0.0, logits)
        positive_logit += tl.sum(tl.where(positive, live, 0.0), axis=1)
        if SMOOTHING:
            logit_sum += tl.sum(live, axis=1)
        if POLICY == "rectify":
            soft_sum += tl.sum(f, axis=1)
            soft_logit_sum += tl.sum(f * live, axis=1)
    slot = slots + tl.program_id(1).to(tl.int64) * SUMS * slots_stride
    store_sums(
        slot,
        slots_stride,
        own,
        own_mask,
        top,
        total,
        logit_sum,
        soft_sum,
        soft_logit_sum,
        positive_logit,
    )


@triton.jit
def side_of_block(log_sum_exp, weight, hard, smooth, index, mask, logits, mass, AXIS: tl.constexpr):
    """Return w·(exp(l − lse) − T) of one side, whose rows lie along the tile's other axis than AXIS."""
    return side_gradient(
        logits,
        mass,
        tl.expand_dims(tl.load(log_sum_exp + index, mask=mask, other=0.0), AXIS),
        tl.expand_dims(tl.load(weight + index, mask=mask, other=0.0), AXIS),
        tl.expand_dims(tl.load(hard + index, mask=mask, other=0.0), AXIS),
        tl.expand_dims(tl.load(smooth + index, mask=mask, other=0.0), AXIS),
    )


@triton.jit(do_not_specialize=["own_count", "other_count", "other_share", "excluded"])
def fused_gradient(
    own_features,
    own_row_stride,
    own_column_stride,
    other_features,
    other_row_stride,
    other_column_stride,
    dims,
    own_embeddings,
    own_embedding_row_stride,
    own_embedding_column_stride,
    other_embeddings,
    other_embedding_row_stride,
    other_embedding_column_stride,
    embedding_dims,
    own_inverse,
    other_inverse,
    own_image,
    other_image,
    own_places,
    own_places_stride,
    other_places,
    other_places_stride,
    targets,
    exclude,
    exclude_row_stride,
    exclude_column_stride,
    excluded,
    scale,
    parameters,
    own_log_sum_exp,
    own_weight,
    own_hard,
    own_smooth,
    other_log_sum_exp,
    other_weight,
    other_hard,
    other_smooth,
    gradient_scale,
    out,
    out_split_stride,
    out_stride,
    along,
    own_count,
    other_count,
    other_share,
    QUERIES_OWN: tl.constexpr,
    OWN_SIDE: tl.constexpr,
    OTHER_SIDE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    EXCLUDE: tl.constexpr,
    DIRECT: tl.constexpr,
    POLICY: tl.constexpr,
    KINDS: tl.constexpr,
    CHORD: tl.constexpr,
    SOURCE: tl.constexpr,
    FAST: tl.constexpr,
    PRECISION: tl.constexpr,
    MAPPED: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Make the own rows' gradient over a share of the other side: itself, or its float32 sum."""
    own = tl.program_id(0).to(tl.int64) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    own_mask = own < own_count
    totals = ()
    for _ in tl.static_range(PARTS):
        totals = totals + (tl.zeros((BLOCK_OWN, BLOCK_D), tl.float32),)  # noqa: RUF005 (as in load_numbers)
    total_along = tl.zeros((BLOCK_OWN,), tl.float32)
    s = tl.load(scale)
    numbers = load_numbers(parameters, KINDS)
    first = tl.program_id(1).to(tl.int64) * other_share
    last = tl.minimum(first + other_share, other_count)
    for start in range(first, last, BLOCK_OTHER):
        other = start + tl.arange(0, BLOCK_OTHER).to(tl.int64)
        other_mask = other < last
        logits, a, f, cos, positive = logits_tile(
            own_features, own_row_stride, own_column_stride,
            other_features, other_row_stride, other_column_stride, dims,
            own_embeddings, own_embedding_row_stride, own_embedding_column_stride,
            other_embeddings, other_embedding_row_stride, other_embedding_column_stride, embedding_dims,
            own_inverse, other_inverse, own_image, other_image,
            own_places, own_places_stride, other_places, other_places_stride,
            targets, exclude, exclude_row_stride, exclude_column_stride, excluded, s, numbers,
            own, own_mask, other, other_mask,
            QUERIES_OWN, NORMALIZE, EXCLUDE, POLICY, KINDS, CHORD, SOURCE, FAST, PRECISION, MAPPED,
            BLOCK_OWN, BLOCK_OTHER, BLOCK_K,
        )  # fmt: skip
        mass = tl.where(positive, 1.0, 0.0)
        if POLICY == "rectify":
            mass += f
        g = tl.zeros((BLOCK_OWN, BLOCK_OTHER), tl.float32)
        if OWN_SIDE:
            g += side_of_block(
                own_log_sum_exp, own_weight, own_hard, own_smooth, own, own_mask, logits, mass, 1
            )
        if OTHER_SIDE:
            g += side_of_block(
                other_log_sum_exp, other_weight, other_hard, other_smooth, other, other_mask, logits, mass, 0
            )
        if POLICY == "penalty":
            g *= a
        dead = logits == float("-inf")
        g = tl.where(dead, 0.0, g)
        total_along += tl.sum(g * tl.where(dead, 0.0, cos), axis=1)
        if NORMALIZE:
            g *= tl.load(other_inverse + other, mask=other_mask, other=0.0)[None, :]
        if other_features.dtype.element_ty == tl.float16:
            g = tl.clamp(g, -FLOAT16_MAX, FLOAT16_MAX, propagate_nan=tl.PropagateNan.ALL)
        g = g.to(other_features.dtype.element_ty)
        added = ()
        for part in tl.static_range(PARTS):  # one after the other, since a part's factors take registers too
            dim = tl.program_id(2) * (PARTS * BLOCK_D) + part * BLOCK_D + tl.arange(0, BLOCK_D)
            rows = tl.load(
                other_features
                + (other * other_row_stride)[:, None]
                + dim.to(tl.int64)[None, :] * other_column_stride,
                mask=other_mask[:, None] & (dim < dims)[None, :],
                other=0.0,
            )
            added = added + (tl.dot(g, rows, totals[part], input_precision=PRECISION),)  # noqa: RUF005
        totals = added
    if tl.program_id(2) == 0:
        tl.store(along + tl.program_id(1).to(tl.int64) * own_count + own, total_along, mask=own_mask)
    for part in tl.static_range(PARTS):
        dim = tl.program_id(2) * (PARTS * BLOCK_D) + part * BLOCK_D + tl.arange(0, BLOCK_D)
        mask = own_mask[:, None] & (dim < dims)[None, :]
        place = out + own[:, None] * out_stride + dim[None, :]
        total = totals[part]
        if DIRECT:
            if NORMALIZE:
                length = tl.load(own_inverse + own, mask=own_mask, other=0.0)
                x = tl.load(
                    own_features
                    + (own * own_row_stride)[:, None]
                    + dim.to(tl.int64)[None, :] * own_column_stride,
                    mask=mask,
                    other=0.0,
                ).to(tl.float32)
                total = (total - (total_along * length)[:, None] * x) * length[:, None]
            tl.store(place, (total * tl.load(gradient_scale)).to(out.dtype.element_ty), mask=mask)
        else:
            tl.store(place + tl.program_id(1).to(tl.int64) * out_split_stride, total, mask=mask)


@triton.jit(do_not_specialize=["rows", "splits"])
def merge_gradient(
    partial,
    partial_split_stride,
    partial_stride,
    along,
    features,
    feature_row_stride,
    feature_column_stride,
    inverse,
    scale,
    out,
    out_stride,
    rows,
    dims,
    splits,
    NORMALIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the splits' sums in order, project, write."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    dim = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row_mask = row < rows
    mask = row_mask[:, None] & (dim < dims)[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    total_along = tl.zeros((BLOCK_R,), tl.float32)
    place = partial + row[:, None] * partial_stride + dim[None, :]
    along_place = along + row
    for _ in range(splits):
        total += tl.load(place, mask=mask, other=0.0)
        total_along += tl.load(along_place, mask=row_mask, other=0.0)
        place += partial_split_stride
        along_place += rows
    if NORMALIZE:
        length = tl.load(inverse + row, mask=row_mask, other=0.0)
        x = tl.load(
            features + row[:, None] * feature_row_stride + dim.to(tl.int64)[None, :] * feature_column_stride,
            mask=mask,
            other=0.0,
        ).to(tl.float32)
        total = (total - (total_along * length)[:, None] * x) * length[:, None]
    s = tl.load(scale)
    tl.store(out + row[:, None] * out_stride + dim[None, :], (total * s).to(out.dtype.element_ty), mask=mask)
