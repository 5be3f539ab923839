"""`geoclip predict`: where was this photo taken?"""

from __future__ import annotations

import argparse

from geoclip.commands.options import DEFAULTS, Commands, add_gallery, image_encoder


def add_parser(commands: Commands) -> None:
    """Adds `geoclip predict`."""
    predict = commands.add_parser("predict", help="where was this photo taken?", formatter_class=DEFAULTS)
    predict.set_defaults(run=run)
    predict.add_argument("photos", nargs="+", metavar="PHOTO", help="image files")
    predict.add_argument(
        "--checkpoint", help="what `geoclip fit` wrote; the official GeoCLIP weights if left out"
    )
    add_gallery(predict)
    predict.add_argument("--top-k", type=int, default=5, help="places per photo")
    predict.add_argument("--backbone", help="overrides the one that the checkpoint names")
    predict.add_argument("--pretrained", help="overrides the one that the checkpoint names")


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip predict`."""
    import torch

    from geoclip.evaluation import Gallery, read_places
    from geoclip.fit import load_trained
    from geoclip.image_encoder import read_image
    from geoclip.model import GeoCLIP

    if options.checkpoint is None:
        tower = image_encoder(options.backbone or "ViT-L-14", options.pretrained or "openai")
        model = GeoCLIP.from_upstream(tower)
    else:
        module = load_trained(options.checkpoint)
        backbone = options.backbone or module.embedding_info.get("backbone")
        if backbone is None:
            raise ValueError(
                f"--backbone: {options.checkpoint} was trained on embeddings of no photo; wanted the "
                "open_clip model that makes such embeddings, got None"
            )
        tower = image_encoder(backbone, options.pretrained or module.embedding_info.get("pretrained"))
        model = module.model
    some_at_a_time = [options.photos[start : start + 32] for start in range(0, len(options.photos), 32)]
    embeddings = torch.cat(
        [
            tower.embed(torch.stack([tower.preprocess(read_image(photo)) for photo in some]))
            for some in some_at_a_time
        ]
    )
    gallery = Gallery(model.eval(), read_places(options.gallery), progress=True)
    latlon, similarity = gallery.place(embeddings, options.top_k)
    probability = gallery.probability(embeddings, similarity)
    print("photo,rank,latitude,longitude,probability")
    for i, photo in enumerate(options.photos):
        for k, (latitude, longitude) in enumerate(latlon[i]):
            print(f"{photo},{k + 1},{latitude:.6f},{longitude:.6f},{probability[i, k]:.6f}")
