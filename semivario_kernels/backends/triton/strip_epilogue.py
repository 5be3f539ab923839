"""`tile_driver.Epilogue` in Triton: launches of `strip_kernels`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import triton

from semivario_kernels.backends.tile_driver import STATISTICS, Prepared, Result, Side, TileDriver
from semivario_kernels.backends.triton import strip_kernels
from semivario_kernels.backends.triton.configurations import STRIP_BLOCKS, capability_of
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.pair_options import PairOptions, pair_parameters
from semivario_kernels.backends.triton.shipped import (
    CAPABILITIES,
    DTYPES,
    ShippedKernel,
    pair_types,
    shipped_pair_options,
)

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor
ALIGNMENT = 16  # elements; vector loads want the three rows of q to start at a multiple


class TritonEpilogue:
    """The arithmetic of a tile in one pass, float32.

    The rows' sums of a row block wait in slots, one for every program, until its last tile; one kernel merges
    them then.
    """

    def __init__(self, prepared: Prepared) -> None:
        problem = prepared.problem
        device = problem.x.device
        self._prepared = prepared
        self._options = PairOptions.of(problem)
        self._parameters = pair_parameters(problem.policy, problem.variogram, device)
        self._smoothing = problem.label_smoothing > 0
        self._q = padded_columns(prepared.q)
        self._slots = torch.empty(0, dtype=torch.float32, device=device)
        self._next_slot = 0

    def forward(
        self,
        rows: slice,
        columns: slice,
        dot: Tensor,
        vu: Tensor | None,
        extra: Tensor | None,
        statistics: Tensor | None,
    ) -> None:
        """Turn `dot` into logits and add to the rows' sums."""
        prepared, blocks = self._prepared, STRIP_BLOCKS
        n, m = dot.shape
        splits = triton.cdiv(m, blocks.columns * blocks.steps)
        if statistics is not None and columns.start == 0:
            # the first tile is the widest; every tile but the last is as wide
            self._take_slots(splits * triton.cdiv(prepared.m, m), n)
        strip_kernels.strip_forward[(triton.cdiv(n, blocks.rows), splits)](
            dot,
            dot.stride(0),
            vu,
            0 if vu is None else vu.stride(0),
            extra,
            0 if extra is None else extra.stride(0),
            self._slots,
            0 if statistics is None else self._slots.shape[2],
            None if prepared.p is None else prepared.p[rows],
            None if self._q is None else self._q[:, columns],
            0 if self._q is None else self._q.stride(0),
            prepared.inverse_y[columns],
            None if prepared.inverse_v is None else prepared.inverse_v[rows],
            None if prepared.inverse_u is None else prepared.inverse_u[columns],
            prepared.targets[rows],
            prepared.scale,
            self._parameters,
            n,
            m,
            columns.start,
            self._next_slot,
            **self._options.constexprs(),
            STATISTICS=statistics is not None,
            SMOOTHING=self._smoothing,
            **blocks.walk,
            **blocks.forward_options(
                capability_of(dot.device), self._options.policy, 0 if vu is None else vu.element_size()
            ),
        )
        if statistics is not None:
            self._next_slot += splits
            if columns.stop == prepared.m:
                self._merge(self._slots, self._next_slot, statistics[:, rows], accumulate=False)
                self._next_slot = 0

    def column_statistics(
        self, rows: slice, columns: slice, logits: Tensor, soft: Tensor | None, statistics: Tensor
    ) -> None:
        """Add a tile of logits to the columns' sums."""
        blocks = STRIP_BLOCKS
        n, m = logits.shape
        splits = triton.cdiv(n, blocks.rows * blocks.steps)
        slots = torch.empty(splits, STATISTICS, m, dtype=torch.float32, device=logits.device)
        strip_kernels.column_sums[(triton.cdiv(m, blocks.columns), splits)](
            logits,
            logits.stride(0),
            soft,
            0 if soft is None else soft.stride(0),
            slots,
            m,
            self._prepared.targets[rows],
            n,
            m,
            columns.start,
            SOFT=soft is not None,
            SMOOTHING=self._smoothing,
            **blocks.walk,
            **blocks.options,
        )
        self._merge(slots, splits, statistics[:, columns], accumulate=True)

    def gradient(
        self,
        rows: slice,
        columns: slice,
        logits: Tensor,
        extra: Tensor | None,
        row_side: Side,
        column_side: Side | None,
        out: Tensor,
    ) -> None:
        """Write A into `out`."""
        blocks = STRIP_BLOCKS
        n, m = logits.shape
        strip_kernels.strip_gradient[(triton.cdiv(n, blocks.rows), triton.cdiv(m, blocks.columns))](
            logits,
            logits.stride(0),
            extra,
            0 if extra is None else extra.stride(0),
            out,
            out.stride(0),
            self._prepared.inverse_y[columns],
            self._prepared.targets[rows],
            *_vectors(row_side, rows),
            *((None,) * 4 if column_side is None else _vectors(column_side, columns)),
            n,
            m,
            columns.start,
            POLICY=self._options.policy,
            BOTH_SIDES=column_side is not None,
            **blocks.block,
            **blocks.options,
        )

    def _take_slots(self, slots: int, rows: int) -> None:
        if self._slots.ndim != 3 or self._slots.shape[0] < slots or self._slots.shape[2] < rows:
            self._slots = torch.empty(
                slots, STATISTICS, rows, dtype=torch.float32, device=self._parameters.device
            )

    def _merge(self, slots: Tensor, count: int, statistics: Tensor, *, accumulate: bool) -> None:
        length = statistics.shape[1]
        strip_kernels.merge_slots[(triton.cdiv(length, STRIP_BLOCKS.merge),)](
            slots,
            slots.shape[2],
            statistics,
            statistics.stride(0),
            length,
            count,
            ACCUMULATE=accumulate,
            BLOCK=STRIP_BLOCKS.merge,
            BLOCK_SLOTS=STRIP_BLOCKS.merge_slots,
            **STRIP_BLOCKS.options,
        )


class TritonTileDriver(TileDriver):
    """The walk over the tiles with the gradients' rows projected in one pass."""

    def __init__(self, problem: InfoNCEProblem, workspace_mb: int | None) -> None:
        super().__init__(problem, TritonEpilogue, workspace_mb)

    def run(self, weights: Tensor | None, need_dx: bool, need_dy: bool, need_ds: bool) -> Result:
        """As `TileDriver.run`."""
        with launching_on(self.problem.x):
            return super().run(weights, need_dx, need_dy, need_ds)

    def statistics(self) -> tuple[Tensor, Tensor | None]:
        """As `TileDriver.statistics`."""
        with launching_on(self.problem.x):
            return super().statistics()

    def gradient(
        self,
        weights: Tensor,
        row_statistics: Tensor,
        column_statistics: Tensor | None,
        need_dx: bool,
        need_dy: bool,
        need_ds: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As `TileDriver.gradient`."""
        with launching_on(self.problem.x):
            return super().gradient(weights, row_statistics, column_statistics, need_dx, need_dy, need_ds)

    def project(
        self,
        features: Tensor,
        inverse: Tensor | None,
        gradient: Tensor,
        scale: Tensor,
        out: Tensor | None,
        *,
        divide: bool,
    ) -> Tensor:
        """As `TileDriver.project`."""
        blocks = STRIP_BLOCKS
        rows, dims = features.shape
        along = gradient.new_empty(rows)
        strip_kernels.project_rows[(triton.cdiv(rows, blocks.project_rows),)](
            features,
            features.stride(0),
            features.stride(1),
            inverse,
            gradient,
            gradient.stride(0),
            scale,
            out,
            0 if out is None else out.stride(0),
            along,
            rows,
            dims,
            PROJECT=inverse is not None,
            DIVIDE=divide,
            WRITE=out is not None,
            BLOCK_R=blocks.project_rows,
            BLOCK_D=min(blocks.project_columns, triton.next_power_of_2(dims)),
            **blocks.options,
        )
        return along


def padded_columns(vectors: Tensor | None) -> Tensor | None:
    """Return (n, 3) unit vectors as (3, n), every row aligned for vector loads."""
    if vectors is None:
        return None
    n = vectors.shape[0]
    padded = vectors.new_empty(3, triton.cdiv(n, ALIGNMENT) * ALIGNMENT)
    return padded[:, :n].copy_(vectors.T)


def _vectors(side: Side, where: slice) -> tuple[Tensor, ...]:
    return tuple(vector[where] for vector in (side.log_sum_exp, side.weight, side.hard, side.smooth))


def shipped() -> Iterator[ShippedKernel]:
    """Yield every configuration of the strips' kernels."""
    for capability in CAPABILITIES:
        for dtype in DTYPES:
            for options in shipped_pair_options():
                if options.source == "embeddings" or dtype == "bf16":
                    yield _shipped_forward(capability, dtype, options, statistics=True)
                if dtype == "fp16":  # without the sums a kernel needs less, whatever the dtype
                    yield _shipped_forward(capability, dtype, options, statistics=False)
            for policy, both_sides in (("none", False), ("none", True), ("rectify", True), ("penalty", True)):
                yield _shipped_gradient(capability, dtype, policy, both_sides)
            yield _shipped_projection(capability, dtype, dtype)
        yield _shipped_projection(capability, "fp16", "fp32")  # the gradient of a mean or a sum
        for soft in (False, True):
            yield _shipped_column_sums(capability, soft)
        for accumulate in (False, True):
            yield _shipped_merge(capability, accumulate)


def _shipped_forward(capability: int, dtype: str, options: PairOptions, *, statistics: bool) -> ShippedKernel:
    types, absent = pair_types(options)
    types |= {"dot": "*fp32", "dot_stride": "i32", "extra_stride": "i32", "slots_stride": "i32"}
    types |= {"vu_stride": "i32", "slots": "*fp32"}
    types |= dict.fromkeys(("rows", "columns", "first_column", "first_slot"), "i32")
    if options.policy in ("penalty", "rectify"):
        types["extra"] = "*fp32"
    else:
        absent["extra"] = None
    bytes_of_vu = 4 if dtype == "fp32" else 2
    if options.source != "embeddings":
        absent["vu"] = None
        dtype, bytes_of_vu = "fp32", 0
    return ShippedKernel.of(
        "strip_forward",
        strip_kernels.strip_forward,
        {**types, "vu": "*" + dtype},
        {
            **absent,
            **options.constexprs(),
            "STATISTICS": statistics,
            "SMOOTHING": statistics,
            **STRIP_BLOCKS.walk,
        },
        STRIP_BLOCKS.forward_options(capability, options.policy, bytes_of_vu),
        capability,
        f"{dtype} {options.label}" + ("" if statistics else " gradient"),
    )


def _shipped_gradient(capability: int, dtype: str, policy: str, both_sides: bool) -> ShippedKernel:
    sides = ("log_sum_exp", "weight", "hard", "smooth")
    types = {"logits": "*fp32", "extra": "*fp32", "out": "*" + dtype, "inverse_y": "*fp32", "targets": "*i64"}
    types |= dict.fromkeys(("logits_stride", "extra_stride", "out_stride"), "i32")
    types |= dict.fromkeys((f"{side}_{vector}" for side in ("row", "column") for vector in sides), "*fp32")
    types |= dict.fromkeys(("rows", "columns", "first_column"), "i32")
    constexprs: dict[str, Any] = {"POLICY": policy, "BOTH_SIDES": both_sides, **STRIP_BLOCKS.block}
    if not both_sides:
        constexprs |= dict.fromkeys(f"column_{vector}" for vector in sides)
    if policy == "none":
        constexprs["extra"] = None
    label = f"{dtype} {policy}" + (" symmetric" if both_sides else "")
    return ShippedKernel.of(
        "strip_gradient",
        strip_kernels.strip_gradient,
        types,
        constexprs,
        STRIP_BLOCKS.options,
        capability,
        label,
    )


def _shipped_column_sums(capability: int, soft: bool) -> ShippedKernel:
    types = {"logits": "*fp32", "soft": "*fp32", "slots": "*fp32", "targets": "*i64"}
    types |= dict.fromkeys(("logits_stride", "soft_stride", "slots_stride"), "i32")
    types |= dict.fromkeys(("rows", "columns", "first_column"), "i32")
    constexprs: dict[str, Any] = {"SOFT": soft, "SMOOTHING": True, **STRIP_BLOCKS.walk}
    if not soft:
        constexprs["soft"] = None
    return ShippedKernel.of(
        "column_sums",
        strip_kernels.column_sums,
        types,
        constexprs,
        STRIP_BLOCKS.options,
        capability,
        "fp32 " + ("rectify" if soft else "none"),
    )


def _shipped_merge(capability: int, accumulate: bool) -> ShippedKernel:
    types = {"slots": "*fp32", "slots_stride": "i32", "statistics": "*fp64", "statistics_stride": "i32"}
    types |= {"count": "i32", "slot_count": "i32"}
    constexprs = {
        "ACCUMULATE": accumulate,
        "BLOCK": STRIP_BLOCKS.merge,
        "BLOCK_SLOTS": STRIP_BLOCKS.merge_slots,
    }
    return ShippedKernel.of(
        "merge_slots",
        strip_kernels.merge_slots,
        types,
        constexprs,
        STRIP_BLOCKS.options,
        capability,
        "fp64" + (" symmetric" if accumulate else ""),
    )


def _shipped_projection(capability: int, dtype: str, out: str) -> ShippedKernel:
    types = {"features": "*" + dtype, "inverse": "*fp32", "gradient": "*fp32", "scale": "*fp32"}
    types |= {"out": "*" + out, "along": "*fp32", "rows": "i32", "dims": "i32"}
    types |= dict.fromkeys(("feature_row_stride", "gradient_stride", "out_stride"), "i32")
    constexprs = {
        "feature_column_stride": 1,
        "PROJECT": True,
        "DIVIDE": True,
        "WRITE": True,
        "BLOCK_R": STRIP_BLOCKS.project_rows,
        "BLOCK_D": STRIP_BLOCKS.project_columns,
    }
    return ShippedKernel.of(
        "project_rows",
        strip_kernels.project_rows,
        types,
        constexprs,
        STRIP_BLOCKS.options,
        capability,
        dtype if out == dtype else f"{dtype} to {out}",
    )
