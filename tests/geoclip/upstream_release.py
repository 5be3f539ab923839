"""Runs upstream geoclip's own loader, in a process of its own because its package has the name of ours.

    python upstream_release.py WHEEL_FOLDER HUB_CACHE OUT RELEASE...

Reads each RELEASE, a folder, by upstream's `GeoCLIP.from_pretrained`; where there is none, one of an upstream
model with random weights is written first. What the models compute of fixed inputs goes into OUT/<release's
name>.npz. HUB_CACHE gets the Hub client's cache of a CLIP with random weights, small enough for a test, in
place of the 1.7 GB one.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

wheel, hub_cache, out, *releases = map(Path, sys.argv[1:])

# the package without its __init__, which imports the training script and with it geopy
package = types.ModuleType("geoclip")
package.__path__ = [str(wheel / "geoclip")]
sys.modules["geoclip"] = package

from safetensors.torch import save_file  # noqa: E402
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer  # noqa: E402

from geoclip.model import GeoCLIP, LocationEncoder  # noqa: E402

assert Path(sys.modules["geoclip.model.GeoCLIP"].__file__).is_relative_to(wheel)

REPOSITORY, REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"


def tiny_clip() -> Path:
    """A CLIP of one narrow layer with upstream's 768 output numbers, in the Hub client's layout."""
    folder = hub_cache / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / REVISION
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        projection_dim=768,
        text_config={**narrow, "vocab_size": 60, "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2},
        vision_config={**narrow, "image_size": 28, "patch_size": 14, "projection_dim": 768},
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 28}
    CLIPImageProcessor(size=size, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    letters = [chr(97 + i) + end for i in range(26) for end in ("", "</w>")]
    words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return folder


def write_release(folder: Path, clip: Path) -> None:
    torch.manual_seed(1)
    model = GeoCLIP(False, clip_path=clip)
    folder.mkdir()
    tensors = {"logit_scale": model.logit_scale.data}
    for part in ("image_encoder.mlp", "location_encoder"):
        module = LocationEncoder([2, 8], False) if part == "location_encoder" else model.image_encoder.mlp
        tensors |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "geoclip-geolocation",
        "format_version": 1,
        "sigma": [2, 8],
        "gallery_file": "places.csv",
        "backbone": {"repo_id": REPOSITORY, "revision": REVISION},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "places.csv").write_text("LAT,LON\n-50.943392,-72.935664\n12.5,-170.25\n89,1e-3\n")


clip = tiny_clip()
for folder in releases:
    if not folder.exists():
        write_release(folder, clip)
    model = GeoCLIP.from_pretrained(folder, cache_dir=hub_cache, local_files_only=True)
    torch.manual_seed(2)
    images, embeddings, latlon = torch.randn(2, 3, 28, 28), torch.randn(5, 768), torch.rand(7, 2) * 100 - 50
    with torch.no_grad():
        np.savez(
            out / f"{folder.name}.npz",
            embeddings=embeddings,
            latlon=latlon,
            image_features=model.image_encoder.mlp(embeddings),
            location_features=model.location_encoder(latlon),
            logit_scale=model.logit_scale,
            gallery=model.gps_gallery,
            logits=model(images, model.gps_gallery[:3]),
        )
