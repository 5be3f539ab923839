"""The loss as a careful user writes it in plain PyTorch: the baseline of the benchmarks.

Every quantity of a pair is one N×M tensor: the haversine distance in float32, both similarity matrices by
one product each, γ, the log-weight and the logits; then `F.cross_entropy` and autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from semivario_kernels import EARTH_RADIUS_KM, NegativePolicy, VariogramModel


def haversine_km(query_latlon: torch.Tensor, gallery_latlon: torch.Tensor) -> torch.Tensor:
    """(N, M) great-circle distances of (N, 2) and (M, 2) degrees, in float32."""
    latitude_a, longitude_a = torch.deg2rad(query_latlon.float())[:, None].unbind(dim=-1)
    latitude_b, longitude_b = torch.deg2rad(gallery_latlon.float())[None, :].unbind(dim=-1)
    a = (
        torch.sin((latitude_b - latitude_a) / 2) ** 2
        + torch.cos(latitude_a) * torch.cos(latitude_b) * torch.sin((longitude_b - longitude_a) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * torch.asin(a.clamp(0, 1).sqrt())


@torch.no_grad()
def log_weights(
    query_latlon: torch.Tensor,
    gallery_latlon: torch.Tensor,
    v: torch.Tensor,
    u: torch.Tensor,
    variogram: VariogramModel,
    policy: NegativePolicy,
) -> torch.Tensor:
    """(N, M) log-weights b of the `semivariogram` and `explained` policies under a stable model."""
    h_km = haversine_km(query_latlon, gallery_latlon)
    rho = torch.exp(-((h_km / variogram.len_scale_km) ** variogram.alpha))
    gamma = variogram.nugget + variogram.psill * (1 - rho)
    d = 1 - (F.normalize(v, dim=-1) @ F.normalize(u, dim=-1).T).float()
    excess = (gamma - d - policy.tolerance).clamp(min=0)
    if policy.kind == "semivariogram":
        b = excess * (policy.hard * (1 - rho) - policy.false * rho)
    elif policy.kind == "explained":
        alike = (1 - d / (variogram.nugget + variogram.psill)).clamp(min=0)
        b = (1 - rho) * (policy.hard * excess + policy.far) - policy.false * rho * alike
    else:
        raise ValueError(f"policy: wanted 'none', 'semivariogram' or 'explained', got {policy.kind!r}")
    return b.fill_diagonal_(0)  # the positives keep their logits


def naive_info_nce(
    x: torch.Tensor,
    y: torch.Tensor,
    query_latlon: torch.Tensor,
    gallery_latlon: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    variogram: VariogramModel,
    policy: NegativePolicy,
    query_embeddings: torch.Tensor,
    gallery_embeddings: torch.Tensor,
    symmetric: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """`semivariogram_info_nce` for a stable model, the positive of query i being gallery entry i ≤ M."""
    logits = (logit_scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T).float()
    if policy.kind != "none":
        logits = logits + log_weights(
            query_latlon, gallery_latlon, query_embeddings, gallery_embeddings, variogram, policy
        )
    targets = torch.arange(len(x), device=x.device)
    loss = F.cross_entropy(logits, targets, reduction=reduction)
    if symmetric:
        loss = (loss + F.cross_entropy(logits.T, targets, reduction=reduction)) / 2
    return loss
