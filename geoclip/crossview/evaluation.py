"""How well a trained cross-view encoder finds the references of a split it has not seen."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from geoclip.checkpoint import read_checkpoint
from geoclip.crossview.model import CrossViewEncoder
from geoclip.crossview.retrieval import Ranked, rank_references
from geoclip.crossview.views import CrossViews
from geoclip.metrics import Metrics, mean_metrics, share_metrics

_ENCODER = "encoder."  # of a training's weights


class Trained(NamedTuple):
    """What a checkpoint of `geoclip crossview fit` holds for evaluation.

    Attributes:
        encoder: in evaluation mode, on the CPU.
        data: settings of its `CrossViewData`: dataset, query_size, reference_size, …
    """

    encoder: CrossViewEncoder
    data: dict[str, Any]


def load_trained(checkpoint: str | os.PathLike[str]) -> Trained:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or damaged.
    """
    command = "geoclip crossview fit"
    needed = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters")
    saved = read_checkpoint(checkpoint, command, needed)
    try:
        encoder = CrossViewEncoder(saved["hyper_parameters"]["backbone"], pretrained=False)
        weights = {name: value for name, value in saved["state_dict"].items() if name.startswith(_ENCODER)}
        encoder.load_state_dict({name.removeprefix(_ENCODER): value for name, value in weights.items()})
    except (RuntimeError, TypeError, KeyError, ValueError) as error:  # weights of another architecture
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{os.fspath(checkpoint)} is no checkpoint of this `{command}`: {reason}") from error
    return Trained(encoder.float().eval(), dict(saved["datamodule_hyper_parameters"]))


@torch.inference_mode()
def embed(
    encoder: CrossViewEncoder,
    loader: DataLoader[torch.Tensor],
    device: torch.device,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """(n, D) float32 unit features of a loader's images, on the device; in half precision on a GPU.

    Args:
        encoder: on the device.
        loader: gives preprocessed images (b, 3, H, W).
        device: where the features are made.
        advance: told how many images are done.
    """
    features = []
    for images in loader:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            made = encoder(images.to(device, non_blocking=True))
        features.append(normalize(made.float(), dim=1))
        advance(len(images))
    return torch.cat(features)


def rank_views(views: CrossViews, queries: torch.Tensor, references: torch.Tensor) -> Ranked:
    """`rank_references` of a split's features.

    Args:
        views: the split.
        queries: (N, D) features of its queries.
        references: (M, D) features of its references.

    Raises:
        ValueError: as in `rank_references`.
    """
    device = queries.device
    labels = [torch.from_numpy(np.asarray(labels)) for labels in (views.query_labels, views.reference_labels)]
    semi = None if views.semi_positives is None else torch.from_numpy(views.semi_positives)
    return rank_references(
        queries,
        references,
        labels[0].to(device),
        labels[1].to(device),
        semi_positives=None if semi is None else semi.to(device),
    )


def intervals(ranked: Ranked, *, bootstrap: int = 1000) -> Metrics:
    """Every metric with its 95 % interval over the queries, see `geoclip.metrics`.

    Args:
        ranked: what `rank_references` returned.
        bootstrap: number of resamples.

    Raises:
        ValueError: `bootstrap` below 1.
    """
    hits = {name: hit.numpy() for name, hit in ranked.successes().items()}
    precision = {name: value.numpy() for name, value in ranked.precision.items()}
    return {**share_metrics(hits), **mean_metrics(precision, bootstrap=bootstrap)}
