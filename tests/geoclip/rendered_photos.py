"""Small geotagged JPEGs for tests: the picture depends smoothly on the place, as landscapes do."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image


def random_latlon(count: int, seed: int = 0) -> np.ndarray:
    """(count, 2) degrees, uniform on the sphere."""
    rng = np.random.default_rng(seed)
    latitude = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    return np.column_stack([latitude, rng.uniform(-180, 180, count)]).round(6)


def render(latlon: np.ndarray, size: int = 48) -> np.ndarray:
    """One (size, size, 3) uint8 picture for a (latitude, longitude) in degrees.

    The colours of sky and ground and the height and tilt of the horizon are smooth functions of the place
    (the unit vector), the same in every run; they change within some 2,000 km.
    """
    latitude, longitude = np.radians(latlon)
    place = np.array(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    )
    rng = np.random.default_rng(2024)
    features = np.cos(rng.normal(scale=3.0, size=(8, 3)) @ place + rng.uniform(0, 2 * np.pi, 8))
    sky, ground = 128 + 110 * features[:3], 128 + 110 * features[3:6]
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    above = 1 / (1 + np.exp(8 * (y - 0.5 * features[6] - 0.5 * features[7] * x)))[..., None]
    return (above * sky + (1 - above) * ground).astype(np.uint8)


def gps_exif(latitude: float, longitude: float) -> Image.Exif:
    def sexagesimal(degrees: float) -> tuple[float, float, float]:
        minutes, seconds = divmod(abs(degrees) * 3600, 60)
        return float(minutes // 60), float(minutes % 60), round(seconds, 4)

    exif = Image.Exif()
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef] = "S" if latitude < 0 else "N"
    gps[ExifTags.GPS.GPSLatitude] = sexagesimal(latitude)
    gps[ExifTags.GPS.GPSLongitudeRef] = "W" if longitude < 0 else "E"
    gps[ExifTags.GPS.GPSLongitude] = sexagesimal(longitude)
    return exif


def render_photos(folder: Path, count: int, seed: int = 0, size: int = 48) -> Path:
    """Renders `count` photos into `folder`, with EXIF GPS, and returns the CSV that lists them.

    The CSV (`photos.csv`, in the folder) has the columns id, path, latitude, longitude; paths are relative.
    """
    folder.mkdir(parents=True, exist_ok=True)
    latlon = random_latlon(count, seed)
    lines = ["id,path,latitude,longitude"]
    for i, (latitude, longitude) in enumerate(latlon):
        name = f"{i:05d}.jpg"
        image = Image.fromarray(render(latlon[i], size))
        image.save(folder / name, quality=92, exif=gps_exif(latitude, longitude))
        lines.append(f"photo-{i},{name},{latitude},{longitude}")
    csv = folder / "photos.csv"
    csv.write_text("\n".join(lines) + "\n")
    return csv
