"""Geotagged sensors without any image: how far does one station speak for another?

Each station's features (three years of monthly values, say) are taken as a vector. The estimator compares
directions, 1 − cos, so features are centred first: what all stations share says nothing about where they are.

    python examples/sensor_semivariogram.py
"""

import numpy as np

from semivario_kernels import binned_semivariance, even_edges_km, fit_variogram, pairwise_haversine

STATIONS, MONTHS = 600, 36


def main() -> None:
    generator = np.random.default_rng(1)
    latlon = np.stack((generator.uniform(46, 55, STATIONS), generator.uniform(6, 15, STATIONS)), axis=1)
    # anomalies with a correlation of exp(−h / 150 km), and an error of each station's own
    distance_km = np.asarray(pairwise_haversine(latlon, latlon))
    factor = np.linalg.cholesky(np.exp(-distance_km / 150) + 1e-9 * np.eye(STATIONS))
    anomalies = factor @ generator.normal(size=(STATIONS, MONTHS))
    features = anomalies + 0.5 * generator.normal(size=anomalies.shape)
    features -= features.mean(axis=0)

    empirical = binned_semivariance(features, latlon, edges_km=even_edges_km(600, 20))
    fit = fit_variogram(empirical, "exponential", weights="stderr")
    model = fit.model
    print("    km  pairs  gamma  fitted")
    for lag_km, pairs, gamma in zip(empirical.lag_km, empirical.counts, empirical.gamma, strict=True):
        print(f"{lag_km:6.0f} {pairs:6,} {gamma:6.3f} {float(model(lag_km)):7.3f}")
    print(f"noise of one station: nugget {model.nugget:.2f} of a sill of {model.sill:.2f}")
    print(f"stations say little of each other beyond {model.range_km():,.0f} km")


if __name__ == "__main__":
    main()
