"""Places the tests measure between."""

import torch

SPECIAL_PLACES = [
    (90.0, 0.0),
    (90.0, 123.0),  # the same pole
    (-90.0, 45.0),
    (0.0, 180.0),
    (0.0, -180.0),  # the same place across the date line
    (12.5, 179.9999),
    (12.5, -179.9999),
    (48.8584, 2.2945),
    (48.8584, 2.2945),  # a duplicate
    (-48.8584, -177.7055),  # its antipode
    (48.858409, 2.2945),  # a metre away
    (0.0, 0.0),
]


def random_latlon(n: int, seed: int) -> torch.Tensor:
    """Uniform on the sphere, (n, 2) float64 degrees."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1
    longitude = 360 * torch.rand(n, generator=generator, dtype=torch.float64) - 180
    return torch.stack([torch.rad2deg(torch.asin(z)), longitude], dim=1)


def embeddings_of(latlon: torch.Tensor, dim: int = 24, seed: int = 0) -> torch.Tensor:
    """Vectors that are alike where places are near."""
    g = torch.Generator().manual_seed(seed)
    radians = torch.deg2rad(latlon)
    xyz = torch.stack(
        [
            radians[:, 0].cos() * radians[:, 1].cos(),
            radians[:, 0].cos() * radians[:, 1].sin(),
            radians[:, 0].sin(),
        ],
        1,
    )
    waves = torch.cos(
        xyz @ torch.randn(3, dim, generator=g, dtype=torch.float64) * 3 + 6 * torch.rand(dim, generator=g)
    )
    return waves + 0.3 * torch.randn(len(latlon), dim, generator=g, dtype=torch.float64)
