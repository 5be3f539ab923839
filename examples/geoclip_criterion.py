"""GeoCLIP's training loop, with the semivariogram loss in the place of `criterion(logits, targets)`.

GeoCLIP (Vivanco Cepeda et al., 2023) takes photos against their places and a queue of earlier places:

    logits = model(images, torch.cat([places, queue]))           # an N×M tensor
    loss = torch.nn.CrossEntropyLoss()(logits, torch.arange(N))

The two lines become one call that never makes the N×M tensor. What is new are the photos' frozen embeddings,
for the queue's places too, and the semivariogram fitted on them once.

    python examples/geoclip_criterion.py
"""

import torch
from torch import nn
from torch.nn.functional import normalize

from semivario_kernels import (
    NegativePolicy,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
    semivariogram_info_nce,
)

PLACES, E, D = 4096, 96, 64
STEPS, BATCH, QUEUE = 120, 128, 1024


def sphere(latlon: torch.Tensor) -> torch.Tensor:
    """Unit vectors (n, 3) of degrees (n, 2)."""
    latitude, longitude = torch.deg2rad(latlon).unbind(dim=1)
    return torch.stack(
        (latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()), dim=1
    )


class Model(nn.Module):
    """GeoCLIP in small: a head over frozen image embeddings, an encoder of places, a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image_head = nn.Linear(E, D)
        self.frequencies = nn.Parameter(8 * torch.randn(3, 128), requires_grad=False)
        self.location_encoder = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, D))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # ln(1/0.07)

    def encode_places(self, latlon: torch.Tensor) -> torch.Tensor:
        waves = sphere(latlon) @ self.frequencies
        return self.location_encoder(torch.cat((waves.sin(), waves.cos()), dim=1))


def train(latlon: torch.Tensor, embeddings: torch.Tensor, variogram: VariogramModel) -> list[float]:
    """Return the loss of each step."""
    model = Model()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    queue = torch.randperm(len(latlon))[:QUEUE]
    losses = []
    for _ in range(STEPS):
        batch = torch.randperm(len(latlon))[:BATCH]
        queue = queue[~torch.isin(queue, batch)]  # a batch's own photo is no negative
        gallery = torch.cat((batch, queue))
        loss = semivariogram_info_nce(
            model.image_head(embeddings[batch]),
            model.encode_places(latlon[gallery]),
            latlon[batch],
            latlon[gallery],
            model.logit_scale.exp(),
            variogram=variogram,
            policy=NegativePolicy.explained(),
            query_embeddings=embeddings[batch],
            gallery_embeddings=embeddings[gallery],
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        queue = gallery[:QUEUE]
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    latlon = torch.rand(PLACES, 2) * torch.tensor([100.0, 300.0]) - torch.tensor([50.0, 150.0])
    # stand-ins for CLIP embeddings: a random field on the sphere, and noise of every photo's own
    field = torch.cos(sphere(latlon) @ (6 * torch.randn(3, E)) + 6.28 * torch.rand(E))
    embeddings = normalize(field + 0.3 * torch.randn(PLACES, E), dim=1)

    empirical = binned_semivariance(embeddings, latlon, edges_km=log_edges_km(50, 20_000, 20))
    fit = fit_variogram(empirical, "stable", metric="chord")
    print(f"range {fit.model.range_km():,.0f} km, nugget {fit.model.nugget:.2f}, R² {fit.r2:.2f}")
    losses = train(latlon, embeddings, fit.model)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")


if __name__ == "__main__":
    main()
