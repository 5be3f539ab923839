import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semivario_kernels import VariogramModel, available_backends, cosine_dissimilarity, explain_backend
from semivario_kernels.backends import native_epilogue
from semivario_kernels.progress import progress_bar


def test_reference_serves_every_device():
    assert "reference" in available_backends()
    assert "reference" in available_backends("meta")


def test_explanation_names_every_backend(monkeypatch):
    monkeypatch.delenv("SEMIVARIO_BACKEND", raising=False)
    lines = explain_backend(torch.zeros(1)).splitlines()
    assert lines[0].split(",")[0] == f"{available_backends()[0]}: runs on cpu"
    monkeypatch.setenv("SEMIVARIO_BACKEND", "reference")
    assert explain_backend(torch.zeros(1)).startswith("reference: runs on cpu (SEMIVARIO_BACKEND)")


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"backend: wanted one of .*reference, got 'cublas'"):
        cosine_dissimilarity(torch.eye(2), backend="cublas")
    monkeypatch.setenv("SEMIVARIO_BACKEND", "cublas")
    with pytest.raises(ValueError, match=r"SEMIVARIO_BACKEND: wanted one of .*reference, got 'cublas'"):
        cosine_dissimilarity(torch.eye(2))


def test_import_needs_torch_and_numpy_only_and_is_fast():
    """Everything else is imported where it is used."""
    code = (
        "import sys, time, torch, numpy; before = set(sys.modules); began = time.process_time();"
        "import semivario_kernels; print(time.process_time() - began);"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *names = run.stdout.split()
    # NumPy loads parts of itself late
    assert set(names) - set(sys.stdlib_module_names) == {"semivario_kernels", "numpy"}
    assert float(seconds) < 0.15  # of processor time, so that other processes do not count


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("gstools", lambda: VariogramModel("stable", 0.1, 0.5, 10.0).to_gstools()),
        ("rich.console", lambda: progress_bar("counting", 1, "pairs", True).__enter__()),
    ],
)
def test_a_missing_extra_is_named(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    wanted = r"pip install 'semivario-kernels\[variogram\]' \(in a clone: pip install '\.\[variogram\]'\)$"
    with pytest.raises(ImportError, match=wanted):
        call()


def test_kernels_that_are_not_built_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "semivario_kernels._native", None)
    sources = Path(__file__).parents[2] / "semivario_kernels" / "backends"
    monkeypatch.setattr(native_epilogue, "__file__", str(sources / "x.py"))
    assert native_epilogue._load() == (None, native_epilogue._why_not_built())
    assert "whose sources are imported" in native_epilogue._why_not_built()
    # as it lies in an environment
    monkeypatch.setattr(
        native_epilogue, "__file__", str(tmp_path / "semivario_kernels" / "backends" / "x.py")
    )
    assert "SEMIVARIO_NATIVE=1 pip install ." in native_epilogue._why_not_built()
