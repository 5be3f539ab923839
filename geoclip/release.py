"""Weights on disk in the format of GeoCLIP's releases: a folder that upstream geoclip 1.3.0 loads as well.

    config.json         model_type, format_version, sigma; of a whole model gallery_file, backbone, open_clip
    model.safetensors   the location encoder; of a whole model the image head and the logit scale too
    gallery.csv         LAT,LON in degrees, of a whole model

`backbone` is what upstream downloads, so it stands there only for the CLIP that upstream knows; `open_clip`
is our own entry, which upstream ignores. All sizes are read off the tensors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from semivario_kernels.atomic import write_atomically

MODEL, LOCATION_ENCODER = "geoclip-geolocation", "geoclip-location-encoder"
FORMAT_VERSION = 1
GALLERY_FILE = "gallery.csv"

# the backbone that upstream's releases name, and the same weights in open_clip
OPEN_CLIP_L14 = {"model": "ViT-L-14", "pretrained": "openai"}
HUB_L14 = {"repo_id": "openai/clip-vit-large-patch14", "revision": "32bd64288804d66eefd0ccbe215aa642df71cc41"}


def write_release(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    gallery: Tensor | None = None,
) -> None:
    """Write a release; config.json comes last, so that a folder without it is an unfinished one.

    Args:
        folder: made if missing; an earlier release in it is replaced.
        config: of config.json, beside its format_version and gallery_file.
        tensors: of model.safetensors.
        gallery: (g, 2) degrees; None writes no gallery.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").unlink(missing_ok=True)
    config = {**config, "format_version": FORMAT_VERSION}
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(path / "model.safetensors", lambda file: file.write(content))
    if gallery is not None:
        config["gallery_file"] = GALLERY_FILE
        places = gallery.detach().cpu().numpy()
        # nine digits bring a float32 back as it was
        write_atomically(
            path / GALLERY_FILE,
            lambda file: np.savetxt(file, places, "%.9g", ",", header="LAT,LON", comments=""),
        )
    text = json.dumps(config, indent=1) + "\n"
    write_atomically(path / "config.json", lambda file: file.write(text.encode()))


def read_release(
    source: str | os.PathLike[str],
    model_type: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Read a release from a folder, or from the Hugging Face Hub.

    Args:
        source: a folder; or, where there is none of that name and it does not look like a path, a Hub ID.
        model_type: the one wanted, `MODEL` or `LOCATION_ENCODER`.
        revision: of the Hub's repository; so are the other arguments the Hub client's.
        token: access token.
        cache_dir: the Hub client's cache.
        local_files_only: no network.

    Returns:
        The folder, config.json and the tensors, on the CPU.

    Raises:
        FileNotFoundError: there is no such folder, and the Hub gives none.
        ValueError: it is no such release, or a damaged one.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        if isinstance(source, os.PathLike) or path.is_absolute() or str(source).startswith("."):
            raise FileNotFoundError(f"{source}: no such folder with a GeoCLIP release")
        from huggingface_hub import snapshot_download

        try:
            path = Path(
                snapshot_download(
                    str(source),
                    allow_patterns=["config.json", "model.safetensors", "*.csv"],
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                )
            )
        # the client's errors share no base class
        except Exception as error:
            raise FileNotFoundError(f"{source}: no such folder, and none from the Hub: {error}") from error
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is no GeoCLIP release: it has no config.json") from None
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is damaged: {error}") from error
    said = (config.get("model_type"), config.get("format_version")) if isinstance(config, dict) else None
    if said != (model_type, FORMAT_VERSION) or isinstance(said[1], bool):
        raise ValueError(
            f"{path / 'config.json'}: wanted model_type and format_version {(model_type, FORMAT_VERSION)}, "
            f"got {said}"
        )
    sigma = config.get("sigma")
    if (
        not isinstance(sigma, list)
        or not sigma
        or not all(isinstance(s, int | float) and s > 0 for s in sigma)
    ):
        raise ValueError(f"{path / 'config.json'}: wanted sigma, a list of positive numbers, got {sigma!r}")
    try:
        return path, config, load_file(path / "model.safetensors", device="cpu")
    except FileNotFoundError:
        raise ValueError(f"{path} is no GeoCLIP release: it has no model.safetensors") from None
    except SafetensorError as error:
        raise ValueError(f"{path / 'model.safetensors'} is damaged: {error}") from error


def gallery_path(folder: Path, config: dict[str, Any]) -> Path:
    """The CSV that config.json names.

    Raises:
        ValueError: it names none inside the folder.
    """
    name = config.get("gallery_file")
    if not isinstance(name, str) or not name.endswith(".csv") or Path(name).name != name:
        raise ValueError(f"{folder / 'config.json'}: wanted gallery_file, a CSV in the folder, got {name!r}")
    if not (folder / name).is_file():
        raise ValueError(f"{folder} is no GeoCLIP release: it has no {name}")
    return folder / name
