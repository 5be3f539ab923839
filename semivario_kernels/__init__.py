"""Semivariogram-regularised contrastive learning on the Earth."""

from typing import Any

from semivario_kernels.backends import available_backends, explain_backend
from semivario_kernels.dissimilarity import cosine_dissimilarity
from semivario_kernels.edges import even_edges_km, log_edges_km, quantile_edges_km
from semivario_kernels.empirical_variogram import EmpiricalVariogram
from semivario_kernels.fit import VariogramFit, fit_variogram
from semivario_kernels.geometry import EARTH_RADIUS_KM, pairwise_haversine
from semivario_kernels.groups import grouped_semivariance
from semivario_kernels.loss import semivariogram_info_nce
from semivario_kernels.modules import GalleryInfoNCE, SemivariogramInfoNCE
from semivario_kernels.policy import NegativePolicy
from semivario_kernels.semivariance import binned_semivariance
from semivario_kernels.topk import topk_gallery
from semivario_kernels.variogram import VariogramModel
from semivario_kernels.variogram_plot import plot_groups

__all__ = [
    "EARTH_RADIUS_KM",
    "EmpiricalVariogram",
    "GalleryInfoNCE",
    "NegativePolicy",
    "SemivariogramInfoNCE",
    "VariogramFit",
    "VariogramModel",
    "available_backends",
    "binned_semivariance",
    "cosine_dissimilarity",
    "even_edges_km",
    "explain_backend",
    "fit_variogram",
    "grouped_semivariance",
    "log_edges_km",
    "pairwise_haversine",
    "plot_groups",
    "quantile_edges_km",
    "semivariogram_info_nce",
    "topk_gallery",
]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module 'semivario_kernels' has no attribute {name!r}")
    from importlib.metadata import version  # pyproject.toml's, the only place where it stands

    return version("semivario-kernels")
