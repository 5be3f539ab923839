"""open_clip's `ClipLoss` replaced: the same call and the same number, without the N×N logits.

python examples/open_clip_loss.py
"""

import torch
from open_clip import ClipLoss
from torch.nn.functional import normalize

from semivario_kernels import GalleryInfoNCE

N, D = 2048, 256


def main() -> None:
    torch.manual_seed(0)
    images, texts = (normalize(torch.randn(N, D), dim=1).requires_grad_() for _ in range(2))
    logit_scale = torch.tensor(100.0, requires_grad=True)

    gradients = {}
    for criterion in (ClipLoss(), GalleryInfoNCE()):
        loss = criterion(images, texts, logit_scale)
        gradients[criterion] = torch.autograd.grad(loss, (images, texts, logit_scale))
        print(f"{type(criterion).__name__:15} {loss.item():.6f}")
    theirs, ours = gradients.values()
    apart = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(theirs, ours, strict=True))
    print(f"largest difference of a gradient, relative: {apart:.1e}")


if __name__ == "__main__":
    main()
