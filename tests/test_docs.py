"""The documentation builds without a warning, and the messages it explains are the ones that come."""

import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import geoclip
import geoclip.sampling
import semivario_kernels
from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    binned_semivariance,
    even_edges_km,
    fit_variogram,
    log_edges_km,
    semivariogram_info_nce,
)

ROOT = Path(__file__).parents[1]
PLAIN = NegativePolicy.none()
MODEL = VariogramModel("exponential", 0.1, 0.8, 500.0)


def features(n, seed=0):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def places(n, seed=0):
    return np.random.default_rng(seed).uniform((-60, -170), (60, 170), (n, 2))


def loss(n=4, m=6, latlon=None, **options):
    return semivariogram_info_nce(
        features(n), features(m, 1), places(n), places(m) if latlon is None else latlon, 10.0, **options
    )


def second_derivative():
    x = features(4)
    value = semivariogram_info_nce(x, features(6, 1), None, None, 10.0, policy=PLAIN)
    torch.autograd.grad(value, x, create_graph=True)


def smooth_field_fitted_in_arc():
    latlon = places(400)
    embeddings = np.cos(np.radians(latlon) @ np.random.default_rng(1).normal(size=(2, 32)) * 3)
    empirical = binned_semivariance(embeddings, latlon, edges_km=log_edges_km(100, 20_000, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_variogram(empirical, "stable")


def few_bins():
    empirical = binned_semivariance(features(50).detach(), places(50), edges_km=even_edges_km(20_000, 3))
    fit_variogram(empirical, "nested")


# what a user does, by the beginning of the message that comes
MISTAKES = {
    "query_embeddings: policy": lambda: loss(variogram=MODEL),
    "variogram: policy": loss,
    "targets: wanted": lambda: loss(6, 4, policy=PLAIN),
    "gallery_latlon: wanted": lambda: loss(
        latlon=np.array([[0.0, 0.0]] * 5 + [[120.0, 10.0]]), policy=NegativePolicy.distance_linear(1, 100)
    ),
    "semivariogram_info_nce has no second": second_derivative,
    "edges_km: no pair": lambda: binned_semivariance(features(5).detach(), places(5), edges_km=[0, 1e-3]),
    "stable with alpha": smooth_field_fitted_in_arc,
    "empirical: a ": few_bins,
    "backend: 'triton'": lambda: loss(policy=PLAIN, backend="triton"),
}


def explained_messages():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    return [m for m in re.findall(r"\*\*`([^`]+)`\*\*", page) if not m.startswith(("…", "native: "))]


@pytest.mark.parametrize("message", explained_messages())
def test_the_explained_message_comes(message, monkeypatch):
    monkeypatch.delenv("SEMIVARIO_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (start,) = [start for start in MISTAKES if message.startswith(start)]
    pattern = ".*".join(re.escape(part) for part in message.split("…"))
    with pytest.raises((ValueError, RuntimeError, UserWarning)) as caught:
        MISTAKES[start]()
    assert re.match(pattern, " ".join(str(caught.value).split())), caught.value


def test_accuracy_in_the_texts_is_that_of_the_results():
    """Each difference with its interval stands in docs/results.md, which is written from the result files."""

    def intervals(text):
        plain = " ".join(text.split()).replace("−", "-").replace("**", "")
        return set(re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", plain))

    measured = intervals((ROOT / "docs" / "results.md").read_text())
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/policies.md")]
    for text in [*texts, inspect.getdoc(NegativePolicy.explained)]:
        said = intervals(text)
        assert len(said) >= 4
        assert not said - measured


@pytest.mark.parametrize("module", [semivario_kernels, geoclip, geoclip.sampling], ids=lambda m: m.__name__)
def test_docstrings_name_every_argument(module):
    """Those of public functions and classes, and of methods that take two or more."""
    checked = 0
    for name in module.__all__:
        public = getattr(module, name)
        if not callable(public):
            continue
        described = {name: public}
        if inspect.isclass(public):
            members = ((f"{name}.{m}", getattr(public, m)) for m in vars(public) if not m.startswith("_"))
            described |= {m: value for m, value in members if callable(value)}
        for label, value in described.items():
            arguments = set(inspect.signature(value).parameters) - {"self"}
            if label == name or len(arguments) > 1:
                found = set(re.findall(r"^ *\**(\w+): ", value.__doc__, re.MULTILINE))
                assert arguments <= found, f"{label}: {arguments - found}"
                checked += 1
    assert checked >= 3


def test_the_site_builds(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    api = (tmp_path / "site" / "api.html").read_text()
    for name in semivario_kernels.__all__:
        assert f'id="semivario_kernels.{name}"' in api, name
    assert "The semivariogram-regularised" not in api  # members, not module docstrings
