"""`geoclip export`: trained weights as a release that `from_pretrained`, here and upstream, reads."""

from __future__ import annotations

import argparse

from geoclip.commands.options import DEFAULTS, Commands, add_choice_of_weights, add_gallery_source


def add_parser(commands: Commands) -> None:
    """Adds `geoclip export`."""
    export = commands.add_parser(
        "export",
        help="weights for others to use",
        description="Write the weights in the release format, here and upstream; it holds the head and the "
        "location encoder, and no backbone: a fine-tuned one is used from its checkpoint.",
        formatter_class=DEFAULTS,
    )
    export.set_defaults(run=run)
    export.add_argument("checkpoint", help="what `geoclip fit` wrote, or upstream: the official weights")
    export.add_argument("out", help="folder for config.json, model.safetensors and gallery.csv")
    add_choice_of_weights(export)
    add_gallery_source(export)


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip export`."""
    import torch

    from geoclip.places import read_places
    from geoclip.weights import load_weights

    weights = load_weights(options.checkpoint, torch.device("cpu"), options.weights)
    if weights.tuned:
        raise ValueError(
            f"{options.checkpoint} has a backbone of its own training, which the release format does not hold"
        )
    model = weights.model
    model.gps_gallery = torch.from_numpy(read_places(options.gallery)).float()
    # what the weights were trained on, by name alone: nothing is loaded
    encoder = model.image_encoder
    encoder.backbone, encoder.pretrained = weights.backbone, weights.pretrained
    encoder.backbone_config = weights.backbone_config
    model.save_pretrained(options.out)
    print(f"{options.out}: weights of {options.checkpoint}, {len(model.gps_gallery):,} places")
