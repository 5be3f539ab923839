"""Matrix products of the inputs as they are, accumulated and written in the arithmetic's dtype."""

from __future__ import annotations

import torch


def product_into(out: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Write x·yᵀ, of (n, D) and (m, D) in any dtype, into (n, m) `out` in its dtype; returns `out`."""
    if x.dtype == out.dtype:
        return torch.mm(x, y.T, out=out)
    if x.is_cuda:
        return torch.mm(x, y.T, out_dtype=out.dtype, out=out)
    return torch.mm(x.to(out.dtype), y.T.to(out.dtype), out=out)
