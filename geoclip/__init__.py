"""GeoCLIP with the semivariogram loss: model, data, training, evaluation and report.

The public names are imported on first use, so that ``import geoclip`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoclip.image_encoder import ImageEncoder
    from geoclip.location_encoder import LocationEncoder
    from geoclip.model import GeoCLIP

__all__ = ["GeoCLIP", "ImageEncoder", "LocationEncoder"]

_HOME = {"GeoCLIP": "model", "ImageEncoder": "image_encoder", "LocationEncoder": "location_encoder"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'geoclip' has no attribute {name!r}")
    try:
        return getattr(import_module(f"geoclip.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        from semivario_kernels.extras import install_command

        raise ModuleNotFoundError(
            f"geoclip.{name} needs the module {error.name!r}: {install_command('train')}",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
