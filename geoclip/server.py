"""`geoclip serve`'s application: one page, and photos to places as JSON.

One model and one gallery serve all requests, one photo at a time. Nothing of a photo is kept.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from geoclip.gallery import Gallery, MapCells
from geoclip.image_encoder import ImageEncoder, read_image
from geoclip.prediction import Prediction, predict
from geoclip.prediction_formats import as_json
from semivario_kernels import VariogramModel

LARGEST_TOP_K = 100
_PAGE = Path(__file__).with_name("server_page.html")
_LAND_DEGREES = 1.0  # the page draws land as the cells that hold a place of the gallery
_DENSITY_DEGREES = 2.0
_UPLOAD_SECONDS = 60.0
_AT_ONCE = 16  # requests that hold a photo in memory
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# the page may run its own script and talk to its own server, and nothing else
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Locator:
    """The model and the gallery that all requests share.

    Attributes:
        source: what the page calls the weights.
        tower: photos to embeddings.
        gallery: the places to choose from.
        max_pixels: larger photos are refused by their header.
        variogram: puts the best supported place first, see `geoclip.support`; None the most probable one.
    """

    source: str
    tower: ImageEncoder
    gallery: Gallery
    max_pixels: int
    variogram: VariogramModel | None = None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.cells = MapCells(self.gallery.latlon, _DENSITY_DEGREES)

    def locate(self, photo: bytes, top_k: int) -> Prediction:
        """Where a photo may have been taken.

        Raises:
            ValueError: the bytes are no readable image, or one with too many pixels.
        """
        with self._one_at_a_time:
            image = read_image(photo, "the photo", max_pixels=self.max_pixels)
            device = next(self.tower.parameters()).device
            embedding = self.tower.embed(self.tower.preprocess(image)[None].to(device)).float()
            (prediction,) = predict([(["photo"], embedding)], self.gallery, top_k, self.cells, self.variogram)
        return prediction


def make_app(locator: Locator, *, max_bytes: int, any_host: bool = False) -> FastAPI:
    """The application.

    Args:
        locator: shared by all requests.
        max_bytes: longer request bodies are refused, by their header or as soon as they are too long.
        any_host: whether requests may name this server otherwise than by a loopback name. Where they may not,
            a page of another site cannot reach it through a name of its own that points here.
    """
    app = FastAPI(title="geoclip", openapi_url=None)
    page = _PAGE.read_text(encoding="utf-8")
    land = MapCells(locator.gallery.latlon, _LAND_DEGREES).centers.round(3).tolist()
    in_work = 0

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        name = request.headers.get("host", "").rsplit(":", 1)[0]
        if not any_host and name not in _LOOPBACK and request.headers.get("host") not in _LOOPBACK:
            return _error(421, f"host: wanted one of {', '.join(_LOOPBACK)}, got {name!r}")
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def misspelt(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _error(422, f"{first['loc'][-1]}: {first['msg']}, got {first.get('input')!r}")

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return _error(500, f"{type(error).__name__}: the server's log says more")

    @app.get("/")
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/world")
    async def world() -> dict[str, Any]:
        places = len(locator.gallery.latlon)
        return {"weights": locator.source, "places": places, "degrees": _LAND_DEGREES, "land": land}

    @app.post("/predict")
    async def locate(request: Request, top_k: int = 5) -> JSONResponse:
        nonlocal in_work
        most = min(LARGEST_TOP_K, len(locator.gallery.latlon))
        if not 1 <= top_k <= most:
            raise HTTPException(422, f"top_k: wanted 1 to {most}, got {top_k}")
        kind = request.headers.get("content-type", "")
        if not kind.startswith("image/"):
            raise HTTPException(
                415, f"content-type: wanted image/jpeg or another image, got {kind or 'none'!r}"
            )
        if in_work >= _AT_ONCE:
            raise HTTPException(503, f"{in_work} photos are being placed: try again later")
        in_work += 1
        try:
            photo = await _body(request, max_bytes)
            prediction = await run_in_threadpool(locator.locate, photo, top_k)
        except ValueError as error:
            raise HTTPException(422, " ".join(str(error).split())) from error
        finally:
            in_work -= 1
        return JSONResponse(as_json(prediction))

    return app


async def _body(request: Request, max_bytes: int) -> bytes:
    """The request's body, never more than `max_bytes` of it."""
    too_long = HTTPException(413, f"photo: wanted at most {max_bytes:,} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_long
    except TimeoutError:
        raise HTTPException(408, f"photo: wanted within {_UPLOAD_SECONDS:.0f} seconds") from None
    return bytes(body)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)
