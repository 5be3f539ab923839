"""The command line: `geoclip embed | variogram | fit | eval | predict | demo`.

Every command imports what it needs when it runs, so that `geoclip --help` answers at once. What a user got
wrong ends in one line on standard error; GEOCLIP_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from geoclip.image_encoder import ImageEncoder

_DESCRIPTION = """\
Train, evaluate and use GeoCLIP with the semivariogram loss. From your photos to places, in order:

  geoclip embed photos.csv data/train         frozen image embeddings, once per photo
  geoclip variogram data/train                how alike photos are at which distance
  geoclip fit --config fit.yaml               train the image head and the location encoder
  geoclip eval runs/fit/last.ckpt data/test   accuracy within 1, 25, 200, 750 and 2500 km
  geoclip predict photo.jpg                   where was this taken?

or, without any photo:  geoclip demo"""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program's name; that of the process by default.

    Returns:
        The exit code: 0, 2 for a user's mistake, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _run(arguments)
    except KeyboardInterrupt:
        print("geoclip: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `geoclip predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("GEOCLIP_TRACEBACK"):
            raise
        print(f"geoclip: {_reason(error)}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["fit"]:  # Lightning's own parser reads the rest
        from geoclip.fit import fit

        print(f"trained: {fit(arguments[1:])}")
    else:
        options = _parser().parse_args(arguments)
        options.run(options)
    sys.stdout.flush()  # here, where a closed pipe can still be caught


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; the trainer's packages come with: pip install 'semivario-kernels[train]'"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"geoclip: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geoclip", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    defaults = argparse.ArgumentDefaultsHelpFormatter

    embed = commands.add_parser("embed", help="photos to cached embeddings", formatter_class=defaults)
    embed.set_defaults(run=_embed)
    embed.add_argument(
        "photos", help=".csv or .parquet with path, latitude, longitude; or a folder of JPEGs with GPS"
    )
    embed.add_argument("out", help="folder for the embeddings")
    embed.add_argument(
        "--image-root", metavar="FOLDER", help="where a table's relative paths start; the table's folder"
    )
    _add_backbone(embed)
    embed.add_argument("--batch-size", type=int, default=64, help="photos per step")
    embed.add_argument("--workers", type=int, help="processes that read photos; one per core")
    embed.add_argument("--max-broken", type=int, default=0, help="so many photos may be missing or broken")

    variogram = commands.add_parser(
        "variogram", help="measure and fit the semivariogram of embeddings", formatter_class=defaults
    )
    variogram.set_defaults(run=_variogram)
    variogram.add_argument("store", help="folder that `geoclip embed` wrote: training data only")
    variogram.add_argument("--out", default="variogram.json", help="fitted model; .npz and .png go beside it")
    variogram.add_argument(
        "--places", type=int, default=6000, help="random photos measured, all pairs of them"
    )
    variogram.add_argument(
        "--kind",
        default="stable",
        choices=("stable", "exponential", "gaussian", "spherical", "matern32", "nested"),
        help="model fitted; nested is the sum of two exponential ones",
    )
    variogram.add_argument("--first-km", type=float, default=1.0, help="end of the first distance bin")
    variogram.add_argument("--last-km", type=float, default=20_000.0, help="end of the last distance bin")
    variogram.add_argument("--bins", type=int, default=30, help="distance bins")
    variogram.add_argument("--seed", type=int, default=0, help="of the choice of photos")

    commands.add_parser("fit", help="train; see geoclip fit --help and --print_config", add_help=False)

    evaluate = commands.add_parser("eval", help="accuracy on held-out embeddings", formatter_class=defaults)
    evaluate.set_defaults(run=_eval)
    evaluate.add_argument("checkpoint", help="what `geoclip fit` wrote, for example runs/fit/last.ckpt")
    evaluate.add_argument("test", help="folder that `geoclip embed` wrote: photos the model has not seen")
    _add_gallery(evaluate)
    evaluate.add_argument("--out", default="metrics.json", help="metrics with bootstrap intervals")
    evaluate.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals")

    predict = commands.add_parser("predict", help="where was this photo taken?", formatter_class=defaults)
    predict.set_defaults(run=_predict)
    predict.add_argument("photos", nargs="+", metavar="PHOTO", help="image files")
    predict.add_argument(
        "--checkpoint", help="what `geoclip fit` wrote; the official GeoCLIP weights if left out"
    )
    _add_gallery(predict)
    predict.add_argument("--top-k", type=int, default=5, help="places per photo")
    predict.add_argument("--backbone", help="overrides the one that the checkpoint names")
    predict.add_argument("--pretrained", help="overrides the one that the checkpoint names")

    demo = commands.add_parser(
        "demo",
        help="all of it on real coordinates, without photos, in minutes",
        description="Train with plain InfoNCE and with the semivariogram loss on the official location "
        "encoder's field at 100,000 real places, and compare. A demo that was stopped goes on where it was.",
        formatter_class=defaults,
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--out", default="runs/demo", help="folder for data, checkpoints, metrics.json, report.html"
    )
    demo.add_argument("--steps", type=int, help="training steps; those of the shipped settings if left out")
    demo.add_argument("--held-out", type=int, default=4000, help="places held out for the evaluation")
    demo.add_argument("--noise", type=float, default=0.8, help="length of the noise on the unit embeddings")
    demo.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backbone", default="ViT-L-14", help="open_clip model, or a .json file that configures one"
    )
    parser.add_argument(
        "--pretrained", default="openai", help="open_clip tag, checkpoint file, or none: random weights"
    )


def _add_gallery(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        default="upstream",
        help="places to choose from: upstream (GeoCLIP's 100,000), a .csv, a .npy or a folder of embeddings",
    )


def _embed(options: argparse.Namespace) -> None:
    from geoclip.embed import embed_photos
    from geoclip.photos import read_photos

    photos = read_photos(options.photos, options.image_root)
    store = embed_photos(
        photos,
        options.out,
        image_encoder=_image_encoder(options.backbone, options.pretrained),
        batch_size=options.batch_size,
        workers=options.workers,
        max_broken=options.max_broken,
    )
    print(f"{len(store):,} embeddings of {store.dim} numbers in {options.out}")


def _variogram(options: argparse.Namespace) -> None:
    from geoclip.embedding_store import EmbeddingStore
    from geoclip.measure import measure_variogram
    from semivario_kernels import log_edges_km

    fit = measure_variogram(
        EmbeddingStore.open(options.store),
        Path(options.out),
        places=options.places,
        edges_km=log_edges_km(options.first_km, options.last_km, options.bins),
        kind=options.kind,
        seed=options.seed,
    )
    model = fit.model
    structures = ", ".join(f"{kind} of {length:.3g} km" for kind, _, length, _ in model.structures)
    print(
        f"γ(h) = {model.nugget:.3f} + {model.total_psill:.3f}·(1 − ρ(h)), {structures}, "
        f"R² {fit.r2:.3f}; written to {options.out}"
    )
    if not fit.resolvable:
        print(f"warning: no resolvable range: {fit.note}", file=sys.stderr)


def _eval(options: argparse.Namespace) -> None:
    import torch

    from geoclip.embedding_store import EmbeddingStore
    from geoclip.evaluation import Gallery, read_places
    from geoclip.fit import load_trained
    from geoclip.metrics import geolocation_metrics
    from semivario_kernels.atomic import write_atomically

    Path(options.out).parent.mkdir(parents=True, exist_ok=True)  # before the long work
    test = EmbeddingStore.open(options.test)
    module = load_trained(options.checkpoint)
    gallery = Gallery(module.model, read_places(options.gallery), progress=True)
    predicted, _ = gallery.place(torch.from_numpy(test.read(range(len(test)))))
    metrics = geolocation_metrics(predicted[:, 0], test.latlon, bootstrap=options.bootstrap)
    write_atomically(options.out, lambda file: file.write(json.dumps(metrics, indent=1).encode()))
    for name, entry in metrics.items():
        print(f"{name:16} {entry['value']:10.3f}   [{entry['low']:.3f}, {entry['high']:.3f}]")
    print(f"{len(test):,} photos, {len(gallery.latlon):,} places; written to {options.out}")


def _predict(options: argparse.Namespace) -> None:
    import torch

    from geoclip.evaluation import Gallery, read_places
    from geoclip.fit import load_trained
    from geoclip.image_encoder import read_image
    from geoclip.model import GeoCLIP

    if options.checkpoint is None:
        tower = _image_encoder(options.backbone or "ViT-L-14", options.pretrained or "openai")
        model = GeoCLIP.from_upstream(tower)
    else:
        module = load_trained(options.checkpoint)
        backbone = options.backbone or module.embedding_info.get("backbone")
        if backbone is None:
            raise ValueError(
                f"--backbone: {options.checkpoint} was trained on embeddings of no photo; wanted the "
                "open_clip model that makes such embeddings, got None"
            )
        tower = _image_encoder(backbone, options.pretrained or module.embedding_info.get("pretrained"))
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


def _demo(options: argparse.Namespace) -> None:
    from geoclip.demo import run_demo

    run_demo(
        Path(options.out),
        steps=options.steps,
        held_out=options.held_out,
        noise=options.noise,
        seed=options.seed,
    )


def _image_encoder(backbone: str, pretrained: str | None) -> ImageEncoder:
    from geoclip.image_encoder import ImageEncoder

    if backbone.endswith(".json"):
        import open_clip

        if not Path(backbone).is_file():
            raise FileNotFoundError(f"--backbone: {backbone}: no such file")
        open_clip.add_model_config(backbone)
        backbone = Path(backbone).stem
    return ImageEncoder(backbone, None if pretrained == "none" else pretrained)
