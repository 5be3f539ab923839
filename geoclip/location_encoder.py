"""GeoCLIP's location encoder: Equal Earth projection, random Fourier features, one network per scale.

Same call, same state-dict names and same numbers as ``geoclip.LocationEncoder`` 1.3.0
(Vivanco Cepeda et al., "GeoCLIP", NeurIPS 2023).
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geoclip import release
from geoclip.coordinates import wrap_longitude
from geoclip.upstream import fetch_upstream


def equal_earth(latlon: Tensor) -> Tensor:
    """Project degrees (n, 2) by Equal Earth (Šavrič, Patterson and Jenny 2018), in upstream's unit.

    The unit is radians · 66.50336 / 180, which puts both axes within [-1, 1].
    """
    # 350° is 10° west: the plane has an edge, and beyond it the network knows no place
    degrees = torch.stack((latlon[:, 0], wrap_longitude(latlon[:, 1])), dim=1)
    latitude, longitude = torch.deg2rad(degrees).unbind(1)
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    # The root as a tensor, the order of the operations and the integer powers are those of the trained model.
    root3 = torch.tensor(3.0, dtype=latlon.dtype, device=latlon.device).sqrt()
    theta = torch.asin(root3 / 2 * torch.sin(latitude))
    slope = 3 * (9 * a4 * theta**8 + 7 * a3 * theta**6 + 3 * a2 * theta**2 + a1)
    x = 2 * root3 * longitude * torch.cos(theta) / slope
    y = a4 * theta**9 + a3 * theta**7 + a2 * theta**3 + a1 * theta
    return torch.stack((x, y), dim=1) * 66.50336 / 180


class FourierFeatures(nn.Module):
    """Fixed random Fourier features of the plane (Tancik et al. 2020): (n, 2) -> (n, 2·encoded_size).

    The frequencies ``b`` (encoded_size, 2) are drawn from N(0, sigma²) and never trained.
    """

    b: Tensor

    def __init__(self, sigma: float, encoded_size: int) -> None:
        super().__init__()
        self.register_buffer("b", sigma * torch.randn(encoded_size, 2))

    def forward(self, plane: Tensor) -> Tensor:
        """Cosines, then sines, of 2π·b·plane."""
        turns = 2 * math.pi * plane.to(self.b.dtype)
        # Phases reach thousands of radians: a matrix product would lose them to autocast or to tf32.
        phase = torch.addcmul(turns[:, :1] * self.b[:, 0], turns[:, 1:], self.b[:, 1])
        return torch.cat((torch.cos(phase), torch.sin(phase)), dim=1)


class LocationEncoderCapsule(nn.Module):
    """One scale: Fourier features, three hidden layers and a linear head, (n, 2) -> (n, output_dim)."""

    def __init__(self, sigma: float, width: int, encoded_size: int, output_dim: int) -> None:
        super().__init__()
        self.capsule = nn.Sequential(
            FourierFeatures(sigma, encoded_size),
            nn.Linear(2 * encoded_size, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(width, output_dim))

    def forward(self, plane: Tensor) -> Tensor:
        """Features of projected positions."""
        features: Tensor = self.head(self.capsule(plane))
        return features


class LocationEncoder(nn.Module):
    """Positions in degrees to features: the sum of one capsule per scale, not normalised.

    Args:
        sigma: Standard deviation of the Fourier frequencies, one per capsule, coarse to fine;
            upstream's 1, 16, 256 by default.
        from_pretrained: Load the official weights (fetched by pip on first use).
        width: Width of the hidden layers.
        encoded_size: Number of Fourier frequencies per capsule.
        output_dim: Length of the features.

    Raises:
        ValueError: ``sigma`` is empty or not positive, a size is below 1, or the official weights
            do not fit the sizes asked for.
        UpstreamUnavailable: The official weights are not in the cache and cannot be fetched.
    """

    def __init__(
        self,
        sigma: Sequence[float] | None = None,
        from_pretrained: bool = True,
        *,
        width: int = 1024,
        encoded_size: int = 256,
        output_dim: int = 512,
    ) -> None:
        super().__init__()
        self.sigma = [1, 16, 256] if sigma is None else list(sigma)
        self.output_dim = output_dim
        if not self.sigma or not all(s > 0 for s in self.sigma):
            raise ValueError(f"sigma is {self.sigma}, wanted at least one scale, all positive")
        sizes = (width, encoded_size, output_dim)
        if min(sizes) < 1:
            raise ValueError(f"(width, encoded_size, output_dim) is {sizes}, wanted each at least 1")
        if from_pretrained and (len(self.sigma), *sizes) != (3, 1024, 256, 512):
            raise ValueError(
                f"the official weights have 3 scales and (width, encoded_size, output_dim) (1024, 256, 512), "
                f"but {len(self.sigma)} and {sizes} were asked for; pass from_pretrained=False"
            )
        for i, s in enumerate(self.sigma):
            self.add_module(f"LocEnc{i}", LocationEncoderCapsule(s, *sizes))
        if from_pretrained:
            weights = fetch_upstream().location_encoder_weights
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    @classmethod
    def from_tensors(cls, sigma: Sequence[float], tensors: Mapping[str, Tensor]) -> "LocationEncoder":
        """An encoder with the sizes and the values of a state dict.

        Args:
            sigma: as `LocationEncoder` takes it, one per capsule.
            tensors: the state dict, by upstream's names.

        Raises:
            ValueError: tensors are missing, too many, or of sizes that do not fit together.
        """
        try:
            width, encoded_size = (
                tensors["LocEnc0.capsule.1.weight"].shape[0],
                len(tensors["LocEnc0.capsule.0.b"]),
            )
            output_dim = len(tensors["LocEnc0.head.0.weight"])
            encoder = cls(sigma, False, width=width, encoded_size=encoded_size, output_dim=output_dim)
            encoder.load_state_dict(dict(tensors))
        except (KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"no weights of a location encoder of {len(sigma)} scales: {reason}") from error
        return encoder

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download_options: Any
    ) -> "LocationEncoder":
        """Read a location encoder's release, for inference.

        Args:
            pretrained_model_name_or_path: a folder, or the ID of a repository on the Hugging Face Hub.
            **download_options: revision, token, cache_dir and local_files_only, for the Hub's client.

        Returns:
            The encoder in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: there is no such folder, and the Hub gives none.
            ValueError: it is no release of a location encoder, or a damaged one.
        """
        path, config, tensors = release.read_release(
            pretrained_model_name_or_path, release.LOCATION_ENCODER, **download_options
        )
        try:
            return cls.from_tensors(config["sigma"], tensors).eval()
        except ValueError as error:
            raise ValueError(f"{path / 'model.safetensors'}: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a release that `from_pretrained`, here and upstream, reads.

        Args:
            folder: made if missing; an earlier release in it is replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        config = {"model_type": release.LOCATION_ENCODER, "sigma": self.sigma}
        release.write_release(folder, config, self.state_dict())

    def forward(self, location: Tensor) -> Tensor:
        """Encode positions.

        Args:
            location: (latitude, longitude) in degrees, (n, 2).

        Returns:
            Features, (n, output_dim), not normalised.

        Raises:
            ValueError: ``location`` is not of shape (n, 2).
        """
        if location.ndim != 2 or location.shape[1] != 2:
            raise ValueError(f"location has shape {tuple(location.shape)}, wanted (n, 2) degrees lat, lon")
        plane = equal_earth(location)
        features: Tensor = sum(capsule(plane) for capsule in self.children())
        return features
