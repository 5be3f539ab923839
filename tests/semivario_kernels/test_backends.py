import subprocess
import sys

import pytest
import torch

from semivario_kernels import available_backends, cosine_dissimilarity, explain_backend


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


def test_import_needs_torch_and_numpy_only():
    """Everything else is imported where it is used."""
    code = (
        "import sys, torch, numpy; before = set(sys.modules); import semivario_kernels;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) - set(sys.stdlib_module_names) == {
        "semivario_kernels",
        "numpy",
    }  # NumPy loads parts of itself late


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("gstools", "semivario_kernels.VariogramModel('stable', 0.1, 0.5, 10.0).to_gstools()"),
        ("matplotlib", "semivario_kernels.VariogramModel('stable', 0.1, 0.5, 10.0).plot()"),
        ("rich", "semivario_kernels.progress.progress_bar('counting', 1, 'pairs', True).__enter__()"),
    ],
)
def test_a_missing_extra_is_named(module, call):
    code = f"import sys; sys.modules[{module!r}] = None; import semivario_kernels.progress; {call}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "pip install 'semivario-kernels[variogram]'" in run.stderr.splitlines()[-1]
