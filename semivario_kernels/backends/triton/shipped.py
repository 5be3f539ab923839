"""What the package compiles on a GPU, as data: the ahead-of-time checks compile it where there is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

CAPABILITIES = (80, 90, 100)


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


def shipped_kernels() -> Iterator[ShippedKernel]:
    """Every configuration of every kernel of this package, module by module."""
    package = import_module(__package__ or "")
    for module in sorted(info.name for info in iter_modules(package.__path__)):
        yield from getattr(import_module(f"{__package__}.{module}"), "shipped", lambda: ())()
