"""The losses as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from semivario_kernels.checks import ArrayLike
from semivario_kernels.loss import DEFAULT_POLICY, Reduction, semivariogram_info_nce
from semivario_kernels.policy import NegativePolicy
from semivario_kernels.variogram import VariogramModel

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SemivariogramInfoNCE(nn.Module):
    """`semivariogram_info_nce` as a module; its state_dict carries the fitted semivariogram.

    The policy and the other options are not in the state_dict. Formula, sources and errors, which come when
    it is called, are those of the function.

    Args:
        variogram: the fitted semivariogram, for policies that read it; `load_state_dict` replaces it.
        policy: what becomes of the negatives.
        dissimilarity: "features" takes d = 1 − ⟨x, y⟩ of the current features instead of embeddings.
        label_smoothing: ε in [0, 1].
        symmetric: return ½(rows + columns).
        normalize: L2-normalise the features inside.
        reduction: "mean", "sum" or "none".
        group: a torch.distributed group over whose ranks queries and gallery are split.
        workspace_mb: bound on the logits' scratch memory in MiB.
        backend: a name from `available_backends()`; None picks the fastest.
    """

    def __init__(
        self,
        variogram: VariogramModel | None = None,
        policy: NegativePolicy = DEFAULT_POLICY,
        *,
        dissimilarity: Literal["features"] | None = None,
        label_smoothing: float = 0.0,
        symmetric: bool = False,
        normalize: bool = True,
        reduction: Reduction = "mean",
        group: ProcessGroup | None = None,
        workspace_mb: int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.variogram = variogram
        self.options: dict[str, Any] = {
            "policy": policy,
            "dissimilarity": dissimilarity,
            "label_smoothing": label_smoothing,
            "symmetric": symmetric,
            "normalize": normalize,
            "reduction": reduction,
            "group": group,
            "workspace_mb": workspace_mb,
            "backend": backend,
        }

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        query_latlon: ArrayLike | None,
        gallery_latlon: ArrayLike | None,
        logit_scale: torch.Tensor | float,
        *,
        query_embeddings: ArrayLike | None = None,
        gallery_embeddings: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        row_weights: ArrayLike | None = None,
        exclude: ArrayLike | None = None,
    ) -> torch.Tensor:
        """Return the loss of one batch: a scalar, or (N,) where the reduction is "none".

        Args:
            x: (N, D) query (image) features.
            y: (M, D) gallery (location) features.
            query_latlon: (N, 2) latitude and longitude in degrees; None where the policy reads no positions.
            gallery_latlon: (M, 2), likewise.
            logit_scale: scalar, already exponentiated.
            query_embeddings: (N, E) frozen visual embeddings; an all-zero row means "no image".
            gallery_embeddings: (M, E), likewise.
            targets: (N,) int64 gallery index of every query's positive; 0 … N−1 when left out.
            row_weights: (N,) weights ≥ 0.
            exclude: (N, K) int64 gallery indices that leave a row's denominator, padded by −1.

        Raises:
            ValueError: as `semivariogram_info_nce`.
        """
        return semivariogram_info_nce(
            x,
            y,
            query_latlon,
            gallery_latlon,
            logit_scale,
            variogram=self.variogram,
            query_embeddings=query_embeddings,
            gallery_embeddings=gallery_embeddings,
            targets=targets,
            row_weights=row_weights,
            exclude=exclude,
            **self.options,
        )

    def get_extra_state(self) -> dict[str, Any]:
        """Return the fitted semivariogram as plain values."""
        return {"variogram": None if self.variogram is None else self.variogram.to_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the fitted semivariogram over."""
        values = state["variogram"]
        self.variogram = None if values is None else VariogramModel.from_dict(values)

    def extra_repr(self) -> str:
        """Show the semivariogram and the options."""
        options = {name: value for name, value in self.options.items() if value is not None}
        return ", ".join([f"{self.variogram}", *(f"{name}={value}" for name, value in options.items())])


class GalleryInfoNCE(nn.Module):
    """Plain InfoNCE with the call and the defaults of open_clip's `ClipLoss`, without its N × M logits.

    The symmetric loss is that of Radford et al., 2021, figure 3.

    Args:
        label_smoothing: ε in [0, 1].
        symmetric: average the losses of images and texts, as `ClipLoss` does.
        normalize: L2-normalise the features; off by default, since open_clip's models do it themselves.
        group: a torch.distributed group over whose ranks the features are split (in the place of
            `ClipLoss`'s `rank` and `world_size`).
        backend: a name from `available_backends()`; None picks the fastest.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        symmetric: bool = True,
        normalize: bool = False,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "symmetric": symmetric,
            "normalize": normalize,
            "group": group,
            "backend": backend,
        }

    def forward(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor | float,
        logit_bias: torch.Tensor | float | None = None,
        output_dict: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return the mean loss, in {"contrastive_loss": loss} with `output_dict`.

        Args:
            image_features: (N, D), of length 1 unless `normalize`.
            text_features: (N, D), likewise, or any gallery (M, D) whose first N rows are the positives where
                the loss is not symmetric.
            logit_scale: scalar, already exponentiated.
            logit_bias: scalar added to every logit; the softmax does not feel it, and its gradient is 0.
            output_dict: return a dict.

        Raises:
            ValueError: as `semivariogram_info_nce`; N ≠ M where the loss is symmetric.
        """
        loss = semivariogram_info_nce(
            image_features,
            text_features,
            None,
            None,
            logit_scale,
            policy=NegativePolicy.none(),
            **self.options,
        )
        if isinstance(logit_bias, torch.Tensor):
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def extra_repr(self) -> str:
        """Show the options."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items() if value is not None)
