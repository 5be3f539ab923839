import warnings

import numpy as np
import pytest
import torch
from known_fields import KnownField
from places import random_latlon

from semivario_kernels import (
    EmpiricalVariogram,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
)

LAGS_KM = np.geomspace(0.5, 10000, 25)


def empirical_of(gamma, lags_km=LAGS_KM, counts=None):
    edges = np.concatenate([[0.0], np.sqrt(lags_km[1:] * lags_km[:-1]), [lags_km[-1] * 1.2]])
    counts = np.linspace(100, 100_000, len(lags_km)).astype(np.int64) if counts is None else counts
    std = np.full(len(lags_km), 0.1)
    return EmpiricalVariogram(edges, lags_km, counts, np.asarray(gamma), std, std, duplicates=0)


TRUTHS = [
    VariogramModel("stable", 0.05, 0.8, 60.0, 0.45),
    VariogramModel("exponential", 0.1, 0.7, 500.0),
    VariogramModel("spherical", 0.1, 0.7, 900.0),
    VariogramModel("gaussian", 0.1, 0.7, 900.0, metric="chord"),
    VariogramModel("matern32", 0.1, 0.7, 400.0, metric="chord"),
    VariogramModel("stable", 0.0, 0.9, 2000.0, 1.5, metric="chord"),
]


@pytest.mark.parametrize("weights", ["cressie", "counts", "equal"])
@pytest.mark.parametrize("truth", TRUTHS, ids=lambda model: f"{model.kind}-{model.metric}")
def test_exact_data_give_the_model_back(truth, weights):
    fit = fit_variogram(empirical_of(truth(LAGS_KM)), truth.kind, metric=truth.metric, weights=weights)
    assert fit.resolvable, fit.note
    assert fit.r2 == pytest.approx(1.0, abs=1e-8)
    assert fit.model.metric == truth.metric
    np.testing.assert_allclose(fit.model(LAGS_KM), truth(LAGS_KM), atol=1e-5)
    np.testing.assert_allclose(fit.model.len_scale_km, truth.len_scale_km, rtol=1e-3)
    np.testing.assert_allclose(fit.residuals, 0, atol=1e-5)


def test_nested_structures_are_told_apart():
    truth = VariogramModel(("exponential", "exponential"), 0.05, (0.3, 0.5), (8.0, 700.0))
    fit = fit_variogram(empirical_of(truth(LAGS_KM)), "nested")
    structures = sorted(fit.model.structures, key=lambda structure: structure[2])
    np.testing.assert_allclose([s[1] for s in structures], [0.3, 0.5], rtol=1e-3)
    np.testing.assert_allclose([s[2] for s in structures], [8.0, 700.0], rtol=1e-2)
    single = fit_variogram(empirical_of(truth(LAGS_KM)), "exponential")
    assert single.r2 < fit.r2


def test_without_a_nugget():
    truth = VariogramModel("exponential", 0.0, 0.7, 500.0)
    assert fit_variogram(empirical_of(truth(LAGS_KM)), "exponential", nugget=False).model.nugget == 0


def test_a_known_random_field_is_found_again():
    truth = VariogramModel("exponential", 0.2, 0.8, 1500.0, metric="chord")
    latlon = random_latlon(1500, 11)
    vectors = KnownField(truth, latlon).draw(400, seed=4)
    empirical = binned_semivariance(vectors, latlon, edges_km=log_edges_km(300.0, 12000.0, 14))
    fit = fit_variogram(empirical, "exponential", metric="chord")
    # 400 dimensions: γ per bin is known to about 1 %
    assert fit.model.nugget == pytest.approx(0.2, abs=0.04)
    assert fit.model.sill == pytest.approx(1.0, abs=0.02)
    assert fit.model.len_scale_km == pytest.approx(1500, rel=0.1)
    assert fit.resolvable


@pytest.mark.parametrize("weights", ["cressie", "stderr"])
def test_embeddings_without_a_range(weights):
    latlon = random_latlon(400, 2)
    edges = log_edges_km(300.0, 12000.0, 14)
    constant = binned_semivariance(torch.ones(400, 33), latlon, edges_km=edges)
    fit = fit_variogram(constant, weights=weights)  # γ is rounding
    assert (fit.resolvable, fit.note) == (False, "the semivariogram is flat")
    assert fit.model.sill < 1e-6
    generator = torch.Generator().manual_seed(0)
    noise = binned_semivariance(torch.randn(400, 512, generator=generator), latlon, edges_km=edges)
    fit = fit_variogram(noise, weights=weights)
    assert not fit.resolvable
    assert fit.model(5000.0) == pytest.approx(1.0, abs=0.01)


def test_a_slow_rise_is_fitted_without_a_warning():
    truth = VariogramModel("stable", 0.0, 0.9, 50.0, 0.25)  # GSTools warns below 0.3, for its random fields
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_variogram(empirical_of(truth(LAGS_KM)))
    assert fit.model.alpha == pytest.approx(0.25, rel=1e-3)


def test_empty_bins_are_left_out():
    truth = VariogramModel("exponential", 0.1, 0.7, 500.0)
    gamma, counts = truth(LAGS_KM), np.full(25, 1000)
    gamma[3], counts[3] = np.nan, 0
    fit = fit_variogram(empirical_of(gamma, counts=counts), "exponential")
    assert np.isnan(fit.residuals[3])
    assert np.isfinite(np.delete(fit.residuals, 3)).all()
    assert fit.model.len_scale_km == pytest.approx(500, rel=1e-3)


@pytest.mark.parametrize("kind", ["stable", "exponential", "spherical"])
def test_a_pure_nugget_is_not_resolvable(kind):
    noise = np.random.default_rng(0).normal(0, 0.002, 25)
    fit = fit_variogram(empirical_of(0.9 + noise, counts=np.full(25, 1000)), kind)
    assert not fit.resolvable
    assert fit.note
    np.testing.assert_allclose(fit.model(LAGS_KM[5:]), 0.9, atol=0.01)


def test_a_constant_is_not_resolvable():
    fit = fit_variogram(empirical_of(np.full(25, 0.5)))
    assert (fit.resolvable, fit.note, fit.r2) == (False, "the semivariogram is flat", 0.0)
    np.testing.assert_allclose(fit.model(LAGS_KM), 0.5)
    assert not fit_variogram(empirical_of(np.zeros(25))).resolvable


def test_a_range_beyond_the_data_is_reported():
    fit = fit_variogram(empirical_of(1e-5 * LAGS_KM), "exponential")
    assert not fit.resolvable
    assert "upper bound" in fit.note


@pytest.mark.parametrize("nugget", [True, False])
@pytest.mark.parametrize("kind", ["stable", "exponential", "spherical", "nested"])
def test_no_sill_above_the_largest_dissimilarity(kind, nugget):
    """A straight line would be fitted best by a sill without end; 1 − cos ends at 2."""
    line = 0.3 * nugget + 1.2 * LAGS_KM / LAGS_KM.max()
    fit = fit_variogram(empirical_of(line), kind, weights="equal", nugget=nugget)
    assert fit.model.sill == pytest.approx(2.0, abs=0.01)
    assert fit.model.sill <= 2 + 1e-9
    assert not fit.resolvable
    assert "sill 2 at its upper bound" in fit.note
    # within that bound it still follows the data
    np.testing.assert_allclose(fit.model(LAGS_KM), line, atol=0.2)


@pytest.mark.parametrize("bins", [7, 10])
def test_few_noisy_bins_do_not_make_a_range(bins):
    """Three more parameters than a flat model has explain much of seven numbers, whatever they are."""
    lags = np.geomspace(0.5, 10000, bins)
    found = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.002, bins)
        fit = fit_variogram(empirical_of(0.9 + noise, lags, np.full(bins, 1000)), "exponential")
        assert fit.resolvable or "adjusted R²" in fit.note or "bound" in fit.note
        found += fit.resolvable
    assert found <= 5


def test_weights_by_standard_error_trust_the_bins_that_are_known():
    """Half of the bins are wrong and say so; all hold many pairs."""
    truth = VariogramModel("exponential", 0.1, 0.7, 500.0)
    wrong = np.arange(25) % 2 == 1
    empirical = empirical_of(truth(LAGS_KM) + 0.2 * wrong, counts=np.full(25, 1000))
    empirical.stderr[:] = np.where(wrong, 10.0, 0.01)
    by_stderr = fit_variogram(empirical, "exponential", weights="stderr").model
    assert by_stderr.nugget == pytest.approx(0.1, abs=1e-3)
    assert by_stderr.len_scale_km == pytest.approx(500, rel=1e-2)
    assert fit_variogram(empirical, "exponential").model.nugget > 0.15
    empirical.stderr[wrong] = np.nan  # an unknown error: left out
    assert fit_variogram(empirical, "exponential", weights="stderr").model.nugget == pytest.approx(
        0.1, abs=1e-6
    )


def test_a_superfluous_structure_is_named():
    truth = VariogramModel("exponential", 0.1, 0.7, 500.0)
    noise = np.random.default_rng(1).normal(0, 0.003, 25)
    fit = fit_variogram(empirical_of(truth(LAGS_KM) + noise), "nested")
    assert fit.resolvable
    assert "the exponential structure of" in fit.note
    assert "is superfluous" in fit.note
    np.testing.assert_allclose(fit.model(LAGS_KM), truth(LAGS_KM), atol=0.01)


@pytest.mark.parametrize("kinds", ["stable", ("exponential", "spherical")])
def test_a_refit_is_gstools_least_squares(kinds):
    """The refit's own optimiser against GSTools' on noisy values, by the criterion that both minimise."""
    truth = VariogramModel(("exponential", "spherical"), 0.1, (0.4, 0.3), (5.0, 900.0))
    noise = np.random.default_rng(5).normal(0, 0.01, 25)
    fit = fit_variogram(empirical_of(truth(LAGS_KM)), kinds, weights="equal")
    gamma = truth(LAGS_KM) + noise
    gstools_fit = fit_variogram(empirical_of(gamma), kinds, weights="equal").model
    ours = np.square(fit.refit(gamma)(LAGS_KM) - gamma).sum()
    assert ours == pytest.approx(np.square(gstools_fit(LAGS_KM) - gamma).sum(), rel=1e-4)
    np.testing.assert_allclose(fit.refit(gamma)(LAGS_KM), gstools_fit(LAGS_KM), atol=1e-3)


def test_a_refit_of_other_values():
    truth = VariogramModel("exponential", 0.1, 0.7, 500.0)
    fit = fit_variogram(empirical_of(truth(LAGS_KM)), "exponential")
    other = VariogramModel("exponential", 0.15, 0.6, 600.0)
    again = fit.refit(other(LAGS_KM))
    np.testing.assert_allclose(again.parameters, other.parameters, rtol=1e-4)
    holes = np.where(np.arange(25) % 5 == 0, np.nan, other(LAGS_KM))
    np.testing.assert_allclose(fit.refit(holes).parameters, other.parameters, rtol=1e-4)
    with pytest.raises(ValueError, match=r"gamma: wanted shape \(25,\), got \(3,\)"):
        fit.refit(np.ones(3))


def test_a_semivariogram_beyond_two_is_not_one_of_cosines():
    truth = VariogramModel("exponential", 1.0, 7.0, 500.0)  # of a plain variable, in its own unit
    np.testing.assert_allclose(
        fit_variogram(empirical_of(truth(LAGS_KM)), "exponential").model.sill, 8.0, rtol=1e-3
    )


def test_kinds_invalid_on_the_sphere_warn():
    truth = VariogramModel("gaussian", 0.1, 0.7, 900.0)
    with pytest.warns(UserWarning, match="gaussian is no valid covariance in great-circle distance"):
        fit_variogram(empirical_of(truth(LAGS_KM)), "gaussian")
    with pytest.warns(UserWarning, match=r"stable with alpha 2\.00 is no valid covariance"):
        fit_variogram(empirical_of(truth(LAGS_KM)), "stable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_variogram(empirical_of(truth(LAGS_KM)), "gaussian", metric="chord")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"empirical": LAGS_KM}, "empirical: wanted an EmpiricalVariogram, got ndarray"),
        ({"kind": "linear"}, "kind: wanted one of stable, .* got 'linear'"),
        ({"kind": ("stable", 3)}, "kind: wanted one of stable, .* got 3"),
        ({"kind": None}, "kind: wanted one of stable, .* got None"),
        ({"kind": ()}, "kind: wanted at least one structure"),
        ({"metric": "plane"}, "metric: wanted 'arc' or 'chord', got 'plane'"),
        ({"weights": "inv"}, "weights: wanted 'cressie', 'counts', 'equal' or 'stderr', got 'inv'"),
        (
            {"empirical": empirical_of([0.1, 0.2, 0.3], LAGS_KM[:3])},
            "empirical: a stable model has 4 parameters; wanted more filled bins than that, .* got 3 at lags",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_variogram(**{"empirical": empirical_of(TRUTHS[0](LAGS_KM)), **arguments})


def test_a_failed_fit_raises_with_its_data(monkeypatch):
    import gstools

    def give_up(*arguments, **options):
        raise RuntimeError("Optimal parameters not found")

    monkeypatch.setattr(gstools.CovModel, "fit_variogram", give_up)
    with pytest.raises(
        RuntimeError, match=r"(?s)no exponential model .*Optimal parameters not found; lags \[.* km, gamma"
    ):
        fit_variogram(empirical_of(TRUTHS[1](LAGS_KM)), "exponential")
