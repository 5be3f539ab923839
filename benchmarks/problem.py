"""The inputs of one measurement, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from semivario_kernels import VariogramModel

# fits the embeddings made below: γ rises from the town's dissimilarity, 1/3, to that of any two photos, 2/3
VARIOGRAM = VariogramModel("stable", nugget=0.3, psill=0.37, len_scale_km=300, alpha=0.6)
LOGIT_SCALE = 1 / 0.07
ROWS = 4096


@dataclass(frozen=True)
class Problem:
    """Features with gradients, positions in degrees, frozen embeddings, and a gradient for (N,) losses."""

    x: torch.Tensor
    y: torch.Tensor
    query_latlon: torch.Tensor
    gallery_latlon: torch.Tensor
    logit_scale: torch.Tensor
    v: torch.Tensor
    u: torch.Tensor
    upstream: torch.Tensor

    @property
    def leaves(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What gradients flow to."""
        return self.x, self.y, self.logit_scale

    def float(self) -> Problem:
        """Return the same numbers in float32."""
        x, y, logit_scale = (leaf.detach().float().requires_grad_() for leaf in self.leaves)
        return replace(self, x=x, y=y, logit_scale=logit_scale, v=self.v.float(), u=self.u.float())


def make_problem(
    n: int,
    m: int,
    d: int,
    e: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    towns: int = 256,
) -> Problem:
    """N photos of places in towns, the first N of the gallery being their positives 100 m or so away.

    Photos of one town look more alike than others (cosines about 2/3 and 1/3), features are close to their
    positive's (0.7). Everything is made in place, so that making it needs less memory than its gradients.
    """
    if n > m:
        raise ValueError(f"n: wanted at most m = {m}, got {n}")
    generator = torch.Generator(device).manual_seed(seed)
    there = {"generator": generator, "device": device}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, **there)

    town_latlon = torch.rand(towns, 2, dtype=torch.float64, **there)
    town_latlon = town_latlon * town_latlon.new_tensor([120.0, 360.0]) - town_latlon.new_tensor([50.0, 180.0])
    town_look = normal(towns, e) + normal(e)
    town = torch.randint(towns, (m,), **there)
    gallery_latlon = town_latlon[town] + 0.1 * normal(m, 2)
    query_latlon = gallery_latlon[:n] + 0.001 * normal(n, 2)
    y, u = normal(m, d), normal(m, e)
    x, v = normal(n, d).add_(y[:n]), normal(n, e)
    for looks in (u, v):
        for start in range(0, len(looks), ROWS):
            looks[start : start + ROWS] += town_look[town[start : start + ROWS][: len(looks) - start]]
    x, y, v, u = (tensor.to(dtype) for tensor in (x, y, v, u))
    return Problem(
        x=x.requires_grad_(),
        y=y.requires_grad_(),
        query_latlon=query_latlon,
        gallery_latlon=gallery_latlon,
        logit_scale=torch.tensor(LOGIT_SCALE, device=device, requires_grad=True),
        v=v,
        u=u,
        upstream=torch.rand(n, **there) / n,
    )
