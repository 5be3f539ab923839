"""Sample4Geo's `InfoNCE` replaced: symmetric, label smoothing 0.1, learnable logit scale.

Sample4Geo (Deuser et al., 2023) writes

    logits = logit_scale * normalize(query) @ normalize(reference).T
    labels = torch.arange(len(logits))
    loss = (loss_function(logits, labels) + loss_function(logits.T, labels)) / 2

with `loss_function = CrossEntropyLoss(label_smoothing=0.1)`. Here the same comes from one call; a policy and
positions make it the semivariogram's loss, and `exclude` masks semi-positives, of which VIGOR has three each.

    python examples/sample4geo_info_nce.py
"""

import torch
from torch.nn.functional import cross_entropy, normalize

from semivario_kernels import NegativePolicy, semivariogram_info_nce

N, D = 1024, 128


def main() -> None:
    torch.manual_seed(0)
    ground, aerial = (torch.randn(N, D, requires_grad=True) for _ in range(2))
    logit_scale = torch.tensor(14.3, requires_grad=True)

    logits = logit_scale * normalize(ground, dim=1) @ normalize(aerial, dim=1).T
    labels = torch.arange(N)
    published = (
        cross_entropy(logits, labels, label_smoothing=0.1)
        + cross_entropy(logits.T, labels, label_smoothing=0.1)
    ) / 2

    options = {"policy": NegativePolicy.none(), "label_smoothing": 0.1, "symmetric": True}
    ours = semivariogram_info_nce(ground, aerial, None, None, logit_scale, **options)
    print(f"published {published.item():.6f}, ours {ours.item():.6f}")

    # each ground view's semi-positive aerial view leaves its row and its column
    semi = ((torch.arange(N) + 1) % N)[:, None]
    masked = semivariogram_info_nce(ground, aerial, None, None, logit_scale, exclude=semi, **options)
    masked.backward()
    print(f"without semi-positives {masked.item():.6f}")


if __name__ == "__main__":
    main()
