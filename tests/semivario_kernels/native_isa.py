"""Which instruction sets of the compiled kernels this machine runs."""

import os

import pytest
import torch

from semivario_kernels.backends import native_epilogue

REASON = native_epilogue.unavailable_reason()
SKIP = pytest.mark.skipif(REASON is not None, reason=f"the native kernels are not there: {REASON}")


def runs(isa: str) -> bool:
    if REASON is not None:
        return False
    before = os.environ.get("SEMIVARIO_ISA")
    os.environ["SEMIVARIO_ISA"] = isa
    try:
        native_epilogue.haversine_km(torch.eye(3), torch.eye(3), torch.empty(3, 3))
    except ValueError:
        return False
    finally:
        del os.environ["SEMIVARIO_ISA"]
        if before is not None:
            os.environ["SEMIVARIO_ISA"] = before
    return True


RUNNABLE = [isa for isa in ("baseline", "avx2", "avx512") if runs(isa)] or ["baseline"]
