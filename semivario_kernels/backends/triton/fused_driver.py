"""The loss and its gradients by `fused_kernels`: memory O(N + M), the logits computed once in every pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton

from semivario_kernels.backends.tile_driver import (
    STATISTICS,
    Side,
    float16_gain,
)
from semivario_kernels.backends.triton import fused_kernels, strip_kernels
from semivario_kernels.backends.triton.autotune import autotunes, fastest_blocks
from semivario_kernels.backends.triton.configurations import (
    STRIP_BLOCKS,
    FusedBlocks,
    capability_of,
    fused_blocks,
    gradient_name,
    sums_name,
)
from semivario_kernels.backends.triton.device import launching_on
from semivario_kernels.backends.triton.pair_options import PairOptions, pair_parameters
from semivario_kernels.backends.triton.shipped import (
    CAPABILITIES,
    DTYPES,
    ShippedKernel,
    shipped_pair_options,
)
from semivario_kernels.backends.triton.strip_epilogue import TritonTileDriver, padded_columns

if TYPE_CHECKING:
    from semivario_kernels.problem import InfoNCEProblem

Tensor = torch.Tensor
PROGRAMS_PER_PROCESSOR = 4
PARTIAL_BYTES = 2**25  # of the gradient's sums over the splits


@dataclass(frozen=True)
class Rows:
    """What the kernels read of the queries or of the gallery."""

    features: Tensor
    embeddings: Tensor | None
    inverse: Tensor | None
    image: Tensor | None
    places: Tensor | None  # (3, n)

    def __len__(self) -> int:
        return self.features.shape[0]


class FusedDriver(TritonTileDriver):
    """One loss by the fused kernels, with the sums and results of `TileDriver`."""

    def __init__(self, problem: InfoNCEProblem, workspace_mb: int | None) -> None:
        super().__init__(problem, workspace_mb)
        prepared = self.prepared
        device = problem.x.device
        self._options = PairOptions.of(problem)
        self._parameters = pair_parameters(problem.policy, problem.variogram, device)
        self._capability = capability_of(device)
        self._processors = (
            torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
        )
        self._queries = Rows(
            problem.x.detach(), problem.v, prepared.inverse_x, prepared.inverse_v, padded_columns(prepared.p)
        )
        inverse_y = prepared.inverse_y if problem.normalize else None
        self._gallery = Rows(
            problem.y.detach(), problem.u, inverse_y, prepared.inverse_u, padded_columns(prepared.q)
        )

    @property
    def fits_strips(self) -> bool:
        """Never: the logits are computed again for the gradient."""
        return False

    def statistics(self) -> tuple[Tensor, Tensor | None]:
        """As `TileDriver.statistics`."""
        with launching_on(self.problem.x):
            rows = self._statistics(self._queries, self._gallery)
            columns = self._statistics(self._gallery, self._queries) if self.problem.symmetric else None
        return rows, columns

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
        dx = dy = ds = None
        if need_dx or need_ds:
            rows, columns, gain = self._gained_sides(
                weights, row_statistics, column_statistics, self._gallery
            )
            dx, along = self._gradient(self._queries, self._gallery, rows, columns, gain)
            if need_ds:
                ds = along.sum(dtype=torch.float64)
                ds = ds if gain is None else ds / gain
        if need_dy:
            rows, columns, gain = self._gained_sides(
                weights, row_statistics, column_statistics, self._queries
            )
            dy, _ = self._gradient(self._gallery, self._queries, columns, rows, gain)
        return dx if need_dx else None, dy, ds

    def _gained_sides(
        self, weights: Tensor, row_statistics: Tensor, column_statistics: Tensor | None, other: Rows
    ) -> tuple[Side, Side | None, Tensor | None]:
        gain = None
        if self.problem.x.dtype == torch.float16:
            gain = float16_gain(weights, other.inverse)
            weights = weights * gain
        return *self._sides(weights, row_statistics, column_statistics, gain), gain

    def _precision(self) -> str:
        """Of float32 products: what torch's own would take."""
        # torch.get_float32_matmul_precision() raises where only some backends' precision was set
        precision: str = torch.backends.cuda.matmul.fp32_precision
        return "tf32" if precision == "tf32" else "ieee"

    def _pair_arguments(self, own: Rows, other: Rows) -> list[Any]:
        exclude = self.problem.exclude
        return [
            *_matrix(own.features),
            *_matrix(other.features),
            own.features.shape[1],
            *_matrix(own.embeddings),
            *_matrix(other.embeddings),
            0 if own.embeddings is None else own.embeddings.shape[1],
            own.inverse,
            other.inverse,
            own.image,
            other.image,
            own.places,
            0 if own.places is None else own.places.stride(0),
            other.places,
            0 if other.places is None else other.places.stride(0),
            self.prepared.targets,
            *_matrix(exclude),
            0 if exclude is None else exclude.shape[1],
            self.prepared.scale,
            self._parameters,
        ]

    def _pair_constants(self, own: Rows) -> dict[str, Any]:
        return {
            "QUERIES_OWN": own is self._queries,
            "NORMALIZE": self.problem.normalize,
            "EXCLUDE": self.problem.exclude is not None,
            "PRECISION": self._precision(),
            **self._options.constexprs(),
        }

    def _splits(self, own_blocks: int, other: int, block: int, most: int) -> tuple[int, int]:
        """Return the number of shares of the other side, enough for every processor, and their length."""
        wanted = triton.cdiv(PROGRAMS_PER_PROCESSOR * self._processors, own_blocks)
        splits = max(1, min(wanted, most, triton.cdiv(other, block)))
        share = triton.cdiv(triton.cdiv(other, splits), block) * block
        return triton.cdiv(other, share), share

    def _blocks(
        self,
        kernel: str,
        blocks: FusedBlocks,
        launch: Callable[[FusedBlocks], object],
        own: Rows,
        *sides: bool,
    ) -> FusedBlocks:
        """Return `blocks`, which are the table's, or with SEMIVARIO_AUTOTUNE=1 what measured fastest."""
        if not autotunes(own.features.device):
            return blocks
        options = {name: value for name, value in self._pair_constants(own).items() if name != "MAPPED"}
        matrices = [m if m is None else (str(m.dtype), m.shape[1]) for m in (own.features, own.embeddings)]
        smoothing = self.problem.label_smoothing > 0
        key = json.dumps([kernel, matrices, options, smoothing, sides])
        return fastest_blocks(key, blocks, launch, own.features.device)

    def _statistics(self, own: Rows, other: Rows) -> Tensor:
        """(6, own) float64."""
        blocks = self._blocks(
            "fused_statistics",
            fused_blocks(
                sums_name(self._options, self.problem.exclude is not None), self._capability, _itemsize(own)
            ),
            lambda blocks: self._launch_statistics(own, other, blocks),
            own,
        )
        return self._launch_statistics(own, other, blocks)

    def _launch_statistics(self, own: Rows, other: Rows, blocks: FusedBlocks) -> Tensor:
        n, m = len(own), len(other)
        own_blocks = triton.cdiv(n, blocks.own)
        splits, share = self._splits(own_blocks, m, blocks.other, 65535)
        slots = torch.empty(splits, STATISTICS, n, dtype=torch.float32, device=own.features.device)
        fused_kernels.fused_statistics[(own_blocks, splits)](
            *self._pair_arguments(own, other),
            slots,
            n,
            n,
            m,
            share,
            **self._pair_constants(own),
            SMOOTHING=self.problem.label_smoothing > 0,
            **blocks.block,
            **blocks.options,
        )
        statistics = torch.empty(STATISTICS, n, dtype=torch.float64, device=slots.device)
        strip_kernels.merge_slots[(triton.cdiv(n, STRIP_BLOCKS.merge),)](
            slots,
            n,
            statistics,
            n,
            n,
            splits,
            ACCUMULATE=False,
            BLOCK=STRIP_BLOCKS.merge,
            BLOCK_SLOTS=STRIP_BLOCKS.merge_slots,
            **STRIP_BLOCKS.options,
        )
        return statistics

    def _gradient(
        self, own: Rows, other: Rows, own_side: Side | None, other_side: Side | None, gain: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the own rows' gradient and ⟨x̂, gx⟩ of every split and row."""
        with launching_on(own.features):
            blocks = self._blocks(
                "fused_gradient",
                fused_blocks(gradient_name(self._options), self._capability, _itemsize(own)),
                lambda blocks: self._launch_gradient(own, other, own_side, other_side, gain, blocks),
                own,
                own_side is not None,
                other_side is not None,
            )
            return self._launch_gradient(own, other, own_side, other_side, gain, blocks)

    def _launch_gradient(
        self,
        own: Rows,
        other: Rows,
        own_side: Side | None,
        other_side: Side | None,
        gain: Tensor | None,
        blocks: FusedBlocks,
    ) -> tuple[Tensor, Tensor]:
        n, m = len(own), len(other)
        dims = own.features.shape[1]
        device = own.features.device
        block_dims = min(blocks.dims, max(16, triton.next_power_of_2(dims)))
        all_parts = triton.cdiv(dims, block_dims)
        own_blocks, chunks = triton.cdiv(n, blocks.own), triton.cdiv(all_parts, blocks.parts)
        most = max(1, PARTIAL_BYTES // (4 * n * dims))
        splits, share = self._splits(own_blocks * chunks, m, blocks.other, most)
        scale = self.prepared.scale if gain is None else self.prepared.scale / gain
        gradient = torch.empty(n, dims, dtype=self.prepared.gradient_dtype, device=device)
        sums = (
            gradient[None]
            if splits == 1
            else torch.empty(splits, n, dims, dtype=torch.float32, device=device)
        )
        # longer numbers than the features' are projected in place afterwards: in the kernel they would spill
        direct = splits == 1 and gradient.dtype == own.features.dtype
        along = torch.empty(splits, n, dtype=torch.float32, device=device)
        fused_kernels.fused_gradient[(own_blocks, splits, chunks)](
            *self._pair_arguments(own, other),
            *_vectors(own_side),
            *_vectors(other_side),
            scale,
            sums,
            sums.stride(0),
            dims,
            along,
            n,
            m,
            share,
            **self._pair_constants(own),
            OWN_SIDE=own_side is not None,
            OTHER_SIDE=other_side is not None,
            DIRECT=direct,
            **blocks.block,
            BLOCK_D=block_dims,
            PARTS=triton.cdiv(all_parts, chunks),
            **blocks.options,
        )
        if not direct:
            rows, columns = STRIP_BLOCKS.project_rows, min(STRIP_BLOCKS.project_columns, block_dims)
            fused_kernels.merge_gradient[(triton.cdiv(n, rows), triton.cdiv(dims, columns))](
                sums,
                sums.stride(0),
                dims,
                along,
                *_matrix(own.features),
                own.inverse,
                scale,
                gradient,
                dims,
                n,
                dims,
                splits,
                NORMALIZE=self.problem.normalize,
                BLOCK_R=rows,
                BLOCK_D=columns,
                **STRIP_BLOCKS.options,
            )
        return gradient, along


def _itemsize(rows: Rows) -> int:
    """Bytes of the longest factor's element."""
    return max(2, *(t.element_size() for t in (rows.features, rows.embeddings) if t is not None))


def _matrix(matrix: Tensor | None) -> tuple[Tensor | None, int, int]:
    return (None, 0, 0) if matrix is None else (matrix, matrix.stride(0), matrix.stride(1))


def _vectors(side: Side | None) -> tuple[Tensor | None, ...]:
    if side is None:
        return (None,) * 4
    return side.log_sum_exp, side.weight, side.hard, side.smooth


def shipped() -> Iterator[ShippedKernel]:
    """Yield every configuration of the fused kernels, in bf16 also for columns, excluded pairs and splits.

    In fp16 splits too: the gradient of a mean or a sum is kept in fp32, which only they are written in.
    """
    for capability in CAPABILITIES:
        for dtype in DTYPES:
            for options in shipped_pair_options():
                yield _shipped_statistics(capability, dtype, options, queries_own=True, excludes=False)
                yield _shipped_gradient(capability, dtype, options, plain=True)
                if dtype == "bf16":
                    for excludes in (False, True):
                        yield _shipped_statistics(capability, dtype, options, False, excludes)
                if dtype != "fp32":
                    yield _shipped_gradient(capability, dtype, options, plain=False)
            yield _shipped_merge(capability, dtype, dtype)
        yield _shipped_merge(capability, "fp16", "fp32")


SIDES = ("own", "other")
SIDE_VECTORS = ("log_sum_exp", "weight", "hard", "smooth")


def _shipped_pair(
    dtype: str, options: PairOptions, queries_own: bool, excludes: bool
) -> tuple[dict[str, str], dict[str, Any], str]:
    """Types and constants of the arguments that both kernels share, and the configuration's label."""
    types = {"targets": "*i64", "scale": "*fp32", "parameters": "*fp32", "excluded": "i32"}
    types |= {"dims": "i32", "embedding_dims": "i32", "other_share": "i32"}
    constants: dict[str, Any] = {
        "exclude_column_stride": 1,
        "NORMALIZE": True,
        "EXCLUDE": excludes,
        "QUERIES_OWN": queries_own,
        "PRECISION": "ieee",
        **options.constexprs(),
    }
    if excludes:
        types |= {"exclude": "*i64", "exclude_row_stride": "i32"}
    else:
        constants |= {"exclude": None, "exclude_row_stride": 0}
    for side in SIDES:
        types |= {f"{side}_features": "*" + dtype, f"{side}_row_stride": "i32", f"{side}_inverse": "*fp32"}
        types |= {f"{side}_count": "i32", f"{side}_places_stride": "i32"}
        types |= {f"{side}_embedding_row_stride": "i32"}
        constants |= {f"{side}_column_stride": 1, f"{side}_embedding_column_stride": 1}
        for name, dtype_of, present in (
            ("embeddings", dtype, options.source == "embeddings"),
            ("image", "fp32", options.source == "embeddings"),
            ("places", "fp32", options.policy != "none"),
        ):
            if present:
                types[f"{side}_{name}"] = "*" + dtype_of
            else:
                constants[f"{side}_{name}"] = None
    words = [dtype, options.label, "" if queries_own else "columns", "exclude" if excludes else ""]
    return types, constants, " ".join(filter(None, words))


def _shipped_statistics(
    capability: int, dtype: str, options: PairOptions, queries_own: bool, excludes: bool
) -> ShippedKernel:
    types, constants, label = _shipped_pair(dtype, options, queries_own, excludes)
    blocks = fused_blocks(sums_name(options, excludes), capability, 4 if dtype == "fp32" else 2)
    return ShippedKernel.of(
        "fused_statistics",
        fused_kernels.fused_statistics,
        {**types, "slots": "*fp32", "slots_stride": "i32"},
        {**constants, "SMOOTHING": True, **blocks.block},
        blocks.options,
        capability,
        label,
    )


def _shipped_gradient(capability: int, dtype: str, options: PairOptions, *, plain: bool) -> ShippedKernel:
    """One split of the queries' gradient, or several of the gallery's with excluded pairs."""
    types, constants, label = _shipped_pair(dtype, options, plain, not plain)
    blocks = fused_blocks(gradient_name(options), capability, 4 if dtype == "fp32" else 2)
    types |= dict.fromkeys((f"{side}_{vector}" for side in SIDES for vector in SIDE_VECTORS), "*fp32")
    types |= {"gradient_scale": "*fp32", "out": "*" + (dtype if plain else "fp32")}
    types |= {"out_stride": "i32", "out_split_stride": "i32"}
    return ShippedKernel.of(
        "fused_gradient",
        fused_kernels.fused_gradient,
        {**types, "along": "*fp32"},
        {
            **constants,
            "OWN_SIDE": True,
            "OTHER_SIDE": True,
            "DIRECT": plain,
            **blocks.block,
            "BLOCK_D": blocks.dims,
            "PARTS": blocks.parts,
        },
        blocks.options,
        capability,
        label + ("" if plain else " splits"),
    )


def _shipped_merge(capability: int, dtype: str, out: str) -> ShippedKernel:
    types = {"partial": "*fp32", "partial_split_stride": "i32", "partial_stride": "i32", "along": "*fp32"}
    types |= {"features": "*" + dtype, "feature_row_stride": "i32", "inverse": "*fp32", "scale": "*fp32"}
    types |= {"out": "*" + out, "out_stride": "i32", "rows": "i32", "dims": "i32", "splits": "i32"}
    return ShippedKernel.of(
        "merge_gradient",
        fused_kernels.merge_gradient,
        types,
        {
            "feature_column_stride": 1,
            "NORMALIZE": True,
            "BLOCK_R": STRIP_BLOCKS.project_rows,
            "BLOCK_D": STRIP_BLOCKS.project_columns,
        },
        STRIP_BLOCKS.options,
        capability,
        dtype if out == dtype else f"{dtype} to {out}",
    )
