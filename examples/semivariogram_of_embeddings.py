"""Any embeddings, NumPy in, picture out: measure, fit, draw with bootstrap bands.

python examples/semivariogram_of_embeddings.py [semivariogram.png]
"""

import sys

import numpy as np

from semivario_kernels import binned_semivariance, fit_variogram, log_edges_km

PLACES, E, AXIS_KM = 4000, 128, 800.0


def random_field(latlon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Embeddings whose likeness falls with distance, by 1/e within 500 km."""
    latitude, longitude = np.radians(latlon).T
    xyz = np.stack(
        (np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)), axis=1
    )
    # Cauchy frequencies give a correlation of exp(−(|Δx| + |Δy| + |Δz|) / 800 km)
    frequencies = generator.standard_cauchy((3, 16 * E)) * 6371.0088 / AXIS_KM
    waves = np.cos(xyz @ frequencies + generator.uniform(0, 2 * np.pi, 16 * E))
    mixed = waves @ generator.normal(size=(16 * E, E)) / np.sqrt(8 * E)
    return mixed + 0.4 * generator.normal(size=mixed.shape)  # and what is each photo's own: the nugget


def main() -> None:
    generator = np.random.default_rng(0)
    latlon = np.stack(
        (generator.uniform(35, 60, PLACES), generator.uniform(-10, 30, PLACES)), axis=1
    )  # Europe
    embeddings = random_field(latlon, generator)

    empirical = binned_semivariance(embeddings, latlon, edges_km=log_edges_km(10, 3000, 24))
    fit = fit_variogram(empirical, "exponential")
    draws = fit.bootstrap(50)
    low, high = draws.interval()["len_scale_km"].ravel()
    print(
        f"nugget {fit.model.nugget:.3f}, sill {fit.model.sill:.3f}, "
        f"range {fit.model.range_km():,.0f} km; R² {fit.r2:.3f}"
    )
    print(f"length scale {fit.model.len_scale_km:,.0f} km, 95 % interval {low:,.0f} to {high:,.0f} km")

    ax = fit.plot(draws=draws)
    path = sys.argv[1] if len(sys.argv) > 1 else "semivariogram.png"
    ax.figure.savefig(path, dpi=150)
    print(f"drawn into {path}")


if __name__ == "__main__":
    main()
