"""What the numbers were taken on: hardware, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "triton", "open_clip_torch", "gstools", "gstools_core", "scikit-learn")
PACKAGES += ("scikit-gstat", "faiss-cpu", "semivario-kernels")


def processor_name(device: torch.device) -> str:
    """Name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """Git commit of this checkout, with -dirty where files differ from it; "unknown" outside of one."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(device: torch.device) -> dict[str, Any]:
    """Everything needed to judge or repeat a measurement."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device.type,
        "processor": processor_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0],
        "system": platform.system(),
        "commit": commit(),
        "versions": versions,
        "float32_matmul_precision": (
            torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        ).matmul.fp32_precision,
    }
