"""`geoclip serve`: a page to drop photos on, and the same as JSON."""

from __future__ import annotations

import argparse
import socket

from geoclip.commands.options import (
    DEFAULTS,
    Commands,
    add_device,
    add_gallery,
    add_logit_scale,
    add_support,
    add_weights,
    choose_device,
    gallery_cache,
    support_variogram,
    tower_of,
)


def add_parser(commands: Commands) -> None:
    """Adds `geoclip serve`."""
    serve = commands.add_parser(
        "serve",
        help="a page to drop photos on",
        description="A page to drop photos on. The same as JSON: "
        "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8000/predict?top_k=5'",
        formatter_class=DEFAULTS,
    )
    serve.set_defaults(run=run)
    add_weights(serve)
    add_gallery(serve)
    add_logit_scale(serve)
    add_support(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; anyone who reaches it may send photos"
    )
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serve.add_argument("--max-megabytes", type=float, default=20.0, help="of a photo's file")
    serve.add_argument("--max-megapixels", type=float, default=100.0, help="of a photo")
    add_device(serve)


def run(options: argparse.Namespace) -> None:
    """Runs `geoclip serve` until it is interrupted."""
    for name in ("max_megabytes", "max_megapixels"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')}: wanted more than 0, got {getattr(options, name)}")
    try:
        import uvicorn

        from geoclip.server import Locator, make_app
    except ModuleNotFoundError as error:
        from semivario_kernels.extras import install_command

        raise ModuleNotFoundError(f"{error}: {install_command('serve')}") from error
    from geoclip.gallery import Gallery
    from geoclip.places import read_places
    from geoclip.weights import load_weights

    variogram = support_variogram(options)
    weights = load_weights(options.checkpoint, choose_device(options.device), options.weights)
    tower = tower_of(weights, options)
    _ = tower.preprocess  # loads the backbone now, should it fail
    gallery = Gallery(
        weights.model,
        read_places(options.gallery),
        logit_scale=options.logit_scale,
        cache=gallery_cache(options),
        progress=True,
    )
    locator = Locator(weights.source, tower, gallery, int(1e6 * options.max_megapixels), variogram)
    try:
        listening = socket.create_server((options.host, options.port))
        loopback = options.host == "localhost" or listening.getsockname()[0].startswith("127.")
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {options.host}, --port {options.port}: {error}") from error
    app = make_app(locator, max_bytes=int(1e6 * options.max_megabytes), any_host=not loopback)
    print(f"http://{options.host}:{listening.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    server.run(sockets=[listening])
