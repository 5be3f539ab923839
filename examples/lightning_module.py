"""A SatCLIP-like Lightning module with the semivariogram in its loss.

SatCLIP (Klemmer et al., 2023) aligns satellite images and places by CLIP's symmetric loss. Three lines are
new here, marked (1) to (3): the semivariogram is fitted once, before training, and travels in the checkpoint;
the loss reads the positions and the frozen embeddings.

    python examples/lightning_module.py
"""

import logging
import math
import tempfile

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from semivario_kernels import (
    NegativePolicy,
    SemivariogramInfoNCE,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
)

PLACES, BATCH, E, D = 2048, 256, 96, 64


class LocationCLIP(LightningModule):
    """An image head and a location encoder under the semivariogram's loss."""

    def __init__(self, variogram: VariogramModel | None = None) -> None:
        super().__init__()
        self.image_head = nn.Linear(E, D)
        self.location_encoder = nn.Sequential(nn.Linear(2, 256), nn.SiLU(), nn.Linear(256, D))
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        # (1) the module's state_dict carries the fitted semivariogram
        self.loss = SemivariogramInfoNCE(variogram, NegativePolicy.explained(), symmetric=True)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        embeddings, latlon = batch
        images = self.image_head(embeddings)
        places = self.location_encoder(latlon / latlon.new_tensor([90.0, 180.0]))
        # (2) instead of the two cross entropies
        loss = self.loss(
            images,
            places,
            latlon,
            latlon,
            self.logit_scale.exp(),
            query_embeddings=embeddings,
            gallery_embeddings=embeddings,
        )
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    torch.manual_seed(0)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    latlon = torch.rand(PLACES, 2) * torch.tensor([120.0, 340.0]) - torch.tensor([60.0, 170.0])
    radians = torch.deg2rad(latlon)
    # stand-ins for a frozen backbone's embeddings: alike where places are near
    embeddings = normalize(
        torch.cos(radians @ (5 * torch.randn(2, E)) + 6.28 * torch.rand(E)) + 0.3 * torch.randn(PLACES, E),
        dim=1,
    )
    # (3) once, on training data
    empirical = binned_semivariance(embeddings, latlon, edges_km=log_edges_km(100, 20_000, 16))
    fit = fit_variogram(empirical, "stable", metric="chord")

    model = LocationCLIP(fit.model)
    data = DataLoader(TensorDataset(embeddings, latlon), batch_size=BATCH, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=8,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        trainer.save_checkpoint(f"{folder}/model.ckpt")
        restored = LocationCLIP.load_from_checkpoint(f"{folder}/model.ckpt", weights_only=True)
    loss = trainer.callback_metrics["loss"].item()
    far = model.loss.options["policy"].far  # a far place counts e^far times
    guess = math.log(1 + (BATCH - 1) * math.exp(far))
    print(f"loss {loss:.2f} after {trainer.global_step} steps; a guess costs up to {guess:.2f}")
    variogram = restored.loss.variogram
    print(f"from the checkpoint: a {variogram.kind} semivariogram, range {variogram.range_km():,.0f} km")


if __name__ == "__main__":
    main()
