"""What the package compiles on a GPU, as data: the ahead-of-time checks compile it where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from semivario_kernels.backends.triton.pair_options import PairOptions
from semivario_kernels.policy import POLICY_KINDS, READS_DISSIMILARITY, READS_NOTHING
from semivario_kernels.variogram import KINDS

CAPABILITIES = (80, 90, 100)
DTYPES = ("bf16", "fp16", "fp32")
ALIGNED = ("tt.divisibility", 16)  # Triton's word for pointers and strides that allow vector loads


@dataclass(frozen=True)
class ShippedKernel:
    """One kernel in one configuration, as `triton.compile(ASTSource(…), GPUTarget("cuda", 90, 32))` takes it.

    Every kernel module has `shipped() -> Iterator[ShippedKernel]`.

    Attributes:
        name: the kernel, "strip_forward", the same for all its configurations.
        function: the `@triton.jit` function.
        signature: type of every argument in order: "*bf16", "fp32", "i64", "constexpr".
        constexprs: value of every argument whose type is "constexpr".
        attrs: Triton's attributes by argument path, `{(0,): [["tt.divisibility", 16]]}`.
        options: num_warps, num_stages, maxnreg, enable_fp_fusion.
        capability: compute capability × 10.
        label: what tells configurations of one kernel apart: dtypes, policy, variogram.
    """

    name: str
    function: Any
    signature: Mapping[str, Any]
    constexprs: Mapping[str, Any]
    options: Mapping[str, Any]
    capability: int
    label: str
    attrs: Mapping[tuple[int, ...], Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        function: Any,
        types: Mapping[str, str],
        constexprs: Mapping[str, Any],
        options: Mapping[str, Any],
        capability: int,
        label: str,
    ) -> ShippedKernel:
        """Make the signature from the types by name; pointers and strides are aligned, as in the launches."""
        names = function.arg_names
        return cls(
            name,
            function,
            {argument: "constexpr" if argument in constexprs else types[argument] for argument in names},
            constexprs,
            options,
            capability,
            label,
            {
                (place,): [list(ALIGNED)]
                for place, argument in enumerate(names)
                if argument not in constexprs
                and (types[argument].startswith("*") or "stride" in argument or argument.endswith("dims"))
            },
        )


def shipped_pair_options() -> Iterator[PairOptions]:
    """Every policy, kind, metric, source of d and nested models at least once, not their product."""
    for policy in POLICY_KINDS:
        if policy in READS_DISSIMILARITY:
            yield PairOptions(policy, ("stable",), source="embeddings")
        else:
            yield PairOptions(policy)
    for kind in KINDS[1:]:
        yield PairOptions("semivariogram", (kind,), source="embeddings")
    yield PairOptions("penalty", ("gaussian",), chord=True, source="embeddings")
    yield PairOptions("threshold", ("stable", "spherical"), chord=True, source="embeddings")
    yield PairOptions("rectify", ("stable", "exponential", "spherical"), source="embeddings")
    yield PairOptions("explained", ("exponential",), source="features")


def pair_types(options: PairOptions) -> tuple[dict[str, str], dict[str, None]]:
    """Types of the arguments of the pair arithmetic, and those that are left out."""
    types = {"scale": "*fp32", "inverse_y": "*fp32", "targets": "*i64", "parameters": "*fp32"}
    positions = {"p": "*fp32", "q": "*fp32", "q_stride": "i32"}
    embeddings = {"image_v": "*fp32", "inverse_u": "*fp32"}
    absent: dict[str, None] = {}
    for group, present in (
        (positions, options.policy not in READS_NOTHING),
        (embeddings, options.source == "embeddings"),
    ):
        if present:
            types |= group
        else:
            absent |= dict.fromkeys(name for name, kind in group.items() if kind.startswith("*"))
            types |= {name: kind for name, kind in group.items() if not kind.startswith("*")}
    return types, absent


def shipped_kernels() -> Iterator[ShippedKernel]:
    """Every configuration of every kernel of this package, module by module."""
    package = import_module(__package__ or "")
    for module in sorted(info.name for info in iter_modules(package.__path__)):
        yield from getattr(import_module(f"{__package__}.{module}"), "shipped", lambda: ())()
