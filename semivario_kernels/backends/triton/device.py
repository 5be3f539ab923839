"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def launching_on(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, where Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
