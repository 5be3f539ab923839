"""The official GeoCLIP weights and gallery, from the MIT-licensed wheel ``geoclip==1.3.0``.

The wheel is fetched by pip and only read: its package has the same name as ours and is never imported.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

REQUIREMENT = "geoclip==1.3.0"
WHEEL_SHA256 = "08a93791166a279d52b95c466a952c75f17f654cc61bdf6ab20355325b564dec"


class UpstreamUnavailable(RuntimeError):  # noqa: N818 - it names a state of the world, not a bug
    """The package registry cannot be reached, or pip cannot run."""


@dataclass(frozen=True)
class UpstreamFiles:
    """Paths inside the unpacked wheel.

    Attributes:
        folder: The root of the unpacked wheel.
    """

    folder: Path

    @property
    def location_encoder_weights(self) -> Path:
        """State dict of the location encoder: three capsules of width 1024."""
        return self.folder / "geoclip/model/weights/location_encoder_weights.pth"

    @property
    def image_head_weights(self) -> Path:
        """State dict of the image head: Linear(768, 768), ReLU, Linear(768, 512)."""
        return self.folder / "geoclip/model/weights/image_encoder_mlp_weights.pth"

    @property
    def logit_scale_weights(self) -> Path:
        """The logit scale, a scalar tensor in log space."""
        return self.folder / "geoclip/model/weights/logit_scale_weights.pth"

    @property
    def gallery_csv(self) -> Path:
        """100,000 coordinates in degrees, columns LAT and LON."""
        return self.folder / "geoclip/model/gps_gallery/coordinates_100K.csv"


def fetch_upstream(cache_dir: str | os.PathLike[str] | None = None) -> UpstreamFiles:
    """Fetch and unpack the wheel once; later calls need no network.

    Args:
        cache_dir: Where to keep it. Default: ``semivario-kernels`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        UpstreamUnavailable: pip cannot run or cannot reach the registry.
        RuntimeError: The wheel that came is not the one pinned by its SHA-256.
        OSError: The cache folder cannot be written.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semivario-kernels"
    cache = Path(cache_dir)
    folder = cache / REQUIREMENT.replace("==", "-")
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        # Unpacked beside its final place and renamed: the folder is there whole or not at all.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
            wheel = _download(Path(scratch))
            unpacked = Path(scratch) / "unpacked"
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same files
                    raise
    return UpstreamFiles(folder)


def _download(into: Path) -> Path:
    """Let pip put the wheel into a folder, and check that it is the pinned one."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(into), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        errors = [line for line in why if line.startswith("ERROR:")] or why
        raise UpstreamUnavailable(f"pip could not download {REQUIREMENT}: {errors[-1]}")
    (wheel,) = into.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name} has SHA-256 {digest}, wanted {WHEEL_SHA256}; it was not unpacked")
    return wheel


def read_gallery(csv: str | os.PathLike[str] | None = None) -> torch.Tensor:
    """Read gallery coordinates from a CSV with the header ``LAT,LON``.

    Args:
        csv: The file; by default upstream's 100,000 coordinates (94,100 distinct).

    Returns:
        (latitude, longitude) in degrees, float64, (n, 2).

    Raises:
        ValueError: Another header, a row that is not two numbers, or no row at all.
        UpstreamUnavailable: The default file is not in the cache and cannot be fetched.
    """
    path = fetch_upstream().gallery_csv if csv is None else Path(csv)
    with path.open(encoding="utf-8") as lines:
        header = lines.readline().strip()
        if header != "LAT,LON":
            raise ValueError(f"{path}: the header is {header!r}, wanted 'LAT,LON'")
        rows = [line for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path}: no coordinates below the header")
    try:
        return torch.from_numpy(np.loadtxt(rows, delimiter=",", ndmin=2, usecols=(0, 1)))
    except ValueError as error:
        raise ValueError(f"{path}: wanted two numbers in every row: {error}") from error
