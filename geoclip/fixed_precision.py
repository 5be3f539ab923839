"""Buffers whose precision is their own, whatever precision a training runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class FixedPrecisionBuffers(nn.Module):
    """A module of buffers only, which `to`, `half`, `bfloat16` and `double` move but never convert.

    Positions in bfloat16 would be off by up to 50 km.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer).device)
        return self
