"""`python -m benchmarks.pictures`: README's and docs/' pictures, of the official location encoder's field.

The field at 6,000 of GeoCLIP's 100,000 gallery places, with the demo's noise of each photo's own, stands in
for image embeddings. Writes docs/images/*.png.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from geoclip.field import pretrained_field
from geoclip.figures import plot_surprise
from geoclip.metrics import great_circle_km
from geoclip.upstream import read_gallery
from semivario_kernels import (
    NegativePolicy,
    VariogramFit,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
)
from semivario_kernels.variogram_plot import plot_variogram

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PLACES, NOISE, PAIRS = 6000, 0.4, 400_000
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}


def draw_semivariogram(fit: VariogramFit, embeddings: torch.Tensor, latlon: np.ndarray) -> Figure:
    """The fitted semivariogram, and beside it who is more alike than it expects."""
    rng = np.random.default_rng(1)
    i, j = rng.integers(len(latlon), size=(2, PAIRS))
    h_km = great_circle_km(latlon[i], latlon[j])
    # near pairs are rare among random ones; beside them, neighbours in latitude's order within 50 km
    order = np.argsort(latlon[:, 0])
    shifted = [(order[:-k], order[k:]) for k in range(1, 60)]
    a, b = (np.concatenate(side) for side in zip(*shifted, strict=True))
    near_km = great_circle_km(latlon[a], latlon[b])
    near = near_km < 50
    i, j = np.concatenate([i[h_km > 0], a[near]]), np.concatenate([j[h_km > 0], b[near]])
    h_km = np.concatenate([h_km[h_km > 0], near_km[near]])
    d = 1 - (embeddings[i] * embeddings[j]).sum(dim=1).double().numpy()
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot_variogram(fit.empirical, fit.model, left)
    left.set_title("How unlike do two images look, h km apart?", loc="left")
    plot_surprise(right, h_km, d, fit.model(h_km), fit.model.range_km())
    right.set_title("Which pairs are more alike than that?", loc="left")
    return figure


def draw_policies(model: VariogramModel) -> Figure:
    """Log-weight b of three policies over distance and dissimilarity."""
    policies = {
        "explained(hard=0, false=3, far=5)": NegativePolicy.explained(hard=0, false=3, far=5),
        "semivariogram(hard=5, false=5)": NegativePolicy.semivariogram(hard=5, false=5),
        "distance_linear(weight=3, scale_km=25)": NegativePolicy.distance_linear(weight=3, scale_km=25),
    }
    h_km = torch.logspace(0, 4.3, 240, dtype=torch.float64)[None, :]
    d = torch.linspace(0, 1.2, 200, dtype=torch.float64)[:, None]
    rho = model.torch_correlation(h_km)
    gamma = model.nugget + model.total_psill * (1 - rho)
    figure = Figure(figsize=(12.5, 3.9), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (name, policy) in zip(axes, policies.items(), strict=True):
        b = policy.torch_terms(h_km, d, gamma, rho, model.sill).log_weight
        assert b is not None
        values = b.expand(len(d), h_km.shape[1])
        mesh = ax.pcolormesh(h_km[0], d[:, 0], values, cmap="PuOr_r", vmin=-5, vmax=5, rasterized=True)
        ax.plot(h_km[0], gamma[0], color="black", linewidth=1)
        ax.set_xscale("log")
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_xlabel("distance h, km")
    axes[0].set_ylabel("dissimilarity d")
    axes[0].annotate("γ(h)", (900, 0.98))
    figure.colorbar(mesh, ax=axes, label="log-weight b of a negative", fraction=0.03)
    return figure


def main() -> None:
    """Draw them all."""
    mpl.use("agg")
    torch.manual_seed(0)
    gallery = read_gallery().double().numpy()
    latlon = gallery[np.random.default_rng(0).permutation(len(gallery))[:PLACES]]
    field = pretrained_field(latlon)
    embeddings = normalize(field + NOISE * normalize(torch.randn(field.shape), dim=1), dim=1)
    fit = fit_variogram(
        binned_semivariance(embeddings, latlon, edges_km=log_edges_km(1, 20_000, 28)),
        ("exponential",) * 3,
        weights="stderr",
    )
    IMAGES.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure in {
            "semivariogram": draw_semivariogram(fit, embeddings, latlon),
            "policies": draw_policies(fit.model),
        }.items():
            figure.savefig(IMAGES / f"{name}.png", dpi=110)
            print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
