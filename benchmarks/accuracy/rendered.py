"""World (b) as pictures: the synthetic world's photos are rendered, and a fixed encoder embeds the pixels.

A picture is a sum of 64 coloured textures, as strong as the photo's values of the 64 fields say, squeezed
into the range of a byte, with brightness, contrast and pixel noise of its own. The encoder was never trained:
random 5 × 5 filters, rectified, averaged over small patches, and the principal components of that.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d, normalize

from benchmarks.accuracy.synthetic import DIM, Photos

SIDE = 32  # pixels
EXPOSURE = 0.1  # standard deviation of brightness and of contrast
PIXEL_NOISE = 12  # standard deviation, of 255
WAVES = 4  # plane waves of a texture
FILTERS = 16
_AT_ONCE = 2048
_FIXED = 20  # seed of the textures and of the filters, which are those of no world


def rendered(photos: Photos, seed: int) -> Photos:
    """The same photos with embeddings of their pictures.

    Args:
        photos: of the synthetic world.
        seed: of what each picture has for itself.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(photos.embeddings) * math.sqrt(DIM)
    features = torch.cat([_responses(render(some, generator)) for some in values.split(_AT_ONCE)])
    features -= features.mean(dim=0)
    covariance = features.T.double() @ features.double()
    _, directions = torch.linalg.eigh(covariance)
    components = features @ directions[:, -DIM:].float()
    # whitened: the encoder must not see the strongest texture alone
    embeddings = normalize(components / components.std(dim=0), dim=1)
    return replace(photos, embeddings=embeddings.numpy().astype(np.float32))


def render(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (n, 3, SIDE, SIDE), uint8, of the fields' values (n, DIM), each about 1 in size."""
    scenes = torch.einsum("nk,kcij->ncij", values, _textures()) / math.sqrt(DIM)
    brightness, contrast = EXPOSURE * torch.randn(2, len(values), 1, 1, 1, generator=generator)
    pixels = 127.5 * (1 + torch.tanh((1 + contrast) * scenes) + brightness)
    pixels += PIXEL_NOISE * torch.randn(pixels.shape, generator=generator)
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _textures() -> torch.Tensor:
    """(DIM, 3, SIDE, SIDE): each a few plane waves of 4 to 16 pixels, in a colour each, of variance 1."""
    generator = torch.Generator().manual_seed(_FIXED)
    wavelength = 4 * 4 ** torch.rand(DIM, WAVES, generator=generator)
    turn, phase = 2 * math.pi * torch.rand(2, DIM, WAVES, generator=generator)
    colour = normalize(torch.randn(DIM, WAVES, 3, generator=generator), dim=2)
    pixel = torch.arange(SIDE, dtype=torch.float32)
    across = turn.cos()[..., None, None] * pixel + turn.sin()[..., None, None] * pixel[:, None]
    waves = torch.sin(2 * math.pi * across / wavelength[..., None, None] + phase[..., None, None])
    return torch.einsum("kwc,kwij->kcij", colour, waves) * math.sqrt(6 / WAVES)


def _responses(pictures: torch.Tensor) -> torch.Tensor:
    """(n, FILTERS·7·7) of pictures (n, 3, SIDE, SIDE)."""
    generator = torch.Generator().manual_seed(_FIXED + 1)
    filters = torch.randn(FILTERS, 3, 5, 5, generator=generator)
    filters -= filters.mean(dim=(1, 2, 3), keepdim=True)  # blind to brightness
    responses = conv2d(pictures.float() / 127.5 - 1, filters, stride=2).relu()
    return avg_pool2d(responses, 2).flatten(1)
