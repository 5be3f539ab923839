"""A measurement in a Python process of its own: what it answers, and the peak of its memory.

What counts is the peak beyond that of equal processes which make the same inputs and leave the work out, the
baseline. It is taken twice, and the difference stated as the resolution: Python, the allocator's arenas and
the threads' stacks move it between equal processes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MIB = 2**20


def answer_of(module: str, request: dict[str, Any]) -> Any:
    """What `python -m module` makes of a request, where that calls `serve`; RuntimeError as `output_of`."""
    return json.loads(
        output_of("-m", module, given=json.dumps({**request, "threads": torch.get_num_threads()}))
    )


def output_of(*arguments: str, given: str = "") -> str:
    """What a Python process with these arguments prints; `given` is its standard input.

    Raises:
        RuntimeError: the process failed; the last line that it wrote.
    """
    child = subprocess.run(
        [sys.executable, *arguments],
        input=given,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError((child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1])
    return child.stdout


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Answer the request on the standard input, on as many threads as the asking process has."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request.pop("threads"))
    print(json.dumps(answer(request)))


def peak_mib(device: torch.device) -> float:
    """Peak memory of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        # not ru_maxrss, which Linux hands on through fork and exec: it starts at the parent's peak
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024


def beyond(baselines: list[float], peak: float) -> dict[str, Any]:
    """What a row says of its memory."""
    return {
        "baseline_mib": baselines,
        "resolution_mib": max(baselines) - min(baselines),
        "peak_mib": peak,
        "extra_mib": peak - min(baselines),
    }
