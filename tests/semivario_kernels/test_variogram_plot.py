import sys
import warnings

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from semivario_kernels import EmpiricalVariogram, VariogramModel
from semivario_kernels.variogram_plot import plot_variogram, variogram_figure

MODEL = VariogramModel("stable", nugget=0.1, psill=0.8, len_scale_km=40.0, alpha=0.5)
EDGES = np.array([0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0])


def empirical(counts=(20, 0, 3000, 400_000, 90_000)):
    counts = np.array(counts)
    filled = counts > 0
    lag = np.where(filled, [0.5, 4.0, 50.0, 600.0, 7000.0], np.nan)
    gamma = np.where(filled, [0.12, 0.3, 0.6, 0.85, 0.9], np.nan)
    return EmpiricalVariogram(
        edges_km=EDGES, lag_km=lag, counts=counts, gamma=gamma, std=gamma, stderr=gamma, duplicates=0
    )


def axes():
    return Figure().add_subplot()


def texts(ax):
    return [text.get_text().strip() for text in ax.texts]


def test_points_stand_at_lag_and_gamma_of_filled_bins_and_grow_with_their_pairs():
    ax = plot_variogram(empirical(), None, axes())
    (points,) = ax.collections
    np.testing.assert_allclose(points.get_offsets(), [[0.5, 0.12], [50, 0.6], [600, 0.85], [7000, 0.9]])
    sizes = points.get_sizes()
    assert list(np.argsort(sizes)) == [0, 1, 3, 2]
    assert sizes.min() > 10
    assert ax.get_xscale() == "log"


def test_the_strip_counts_the_pairs_of_every_bin():
    ax = plot_variogram(empirical(), None, axes())
    (strip,) = ax.child_axes
    (bars,) = strip.patches
    counts, edges, _ = bars.get_data()
    np.testing.assert_array_equal(counts, [20, 0, 3000, 400_000, 90_000])
    np.testing.assert_array_equal(edges[1:], EDGES[1:])
    assert 0 < edges[0] == ax.get_xlim()[0] < 0.5
    assert strip.get_xlabel() == "distance, km"
    assert strip.get_xlim() == ax.get_xlim()
    assert strip.get_ylim()[1] > 400_000


def test_the_curve_is_the_model_with_its_nugget_sill_and_range_marked():
    ax = plot_variogram(empirical(), MODEL, axes())
    curve, sill, nugget, range_line = ax.lines
    h_km, gamma = curve.get_data()
    np.testing.assert_allclose(gamma, 0.1 + 0.8 * (1 - np.exp(-((h_km / 40) ** 0.5))), rtol=1e-12)
    assert sill.get_ydata() == pytest.approx([0.9, 0.9])
    assert nugget.get_ydata() == pytest.approx([0.1, 0.1])
    assert range_line.get_xdata() == pytest.approx([40 * np.log(20) ** 2] * 2, rel=1e-9)
    assert texts(ax) == ["sill 0.900", "nugget 0.100", "range 359 km"]
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 0.9


def test_the_axis_ends_where_the_pairs_end():
    ax = plot_variogram(empirical((0, 30, 40, 50, 0)), None, axes())
    assert ax.get_xlim() == (1.0, 1000.0)


def test_a_range_beyond_the_data_is_not_marked():
    far = VariogramModel("exponential", 0.0, 1.0, 30_000.0)
    assert texts(plot_variogram(empirical(), far, axes())) == ["sill 1.000", "nugget 0.000"]


def test_a_nested_model_alone():
    nested = VariogramModel(("exponential", "spherical"), 0.05, (0.3, 0.5), (2.0, 300.0))
    ax = plot_variogram(None, nested, axes())
    assert not ax.child_axes
    assert not ax.collections
    assert ax.lines[0].get_label() == "fitted: exponential + spherical"
    assert ax.get_xlabel() == "distance, km"
    assert texts(ax)[0] == "sill 0.850"


def test_duplicates_at_distance_zero_are_no_obstacle_on_a_logarithmic_axis():
    variogram = empirical((5, 7, 9, 11, 13))
    variogram.lag_km[0] = 0.0
    assert plot_variogram(variogram, MODEL, axes()).get_xlim() == (1, 10_000)


def test_without_axes_a_pyplot_figure_is_made():
    with pyplot.rc_context({"backend": "agg"}):
        ax = plot_variogram(empirical(), MODEL)
        assert ax.figure.number in pyplot.get_fignums()
        pyplot.close(ax.figure)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match=r"empirical, model.*None"):
        plot_variogram(None, None)
    with pytest.raises(ValueError, match=r"empirical.*above 0 km"):
        plot_variogram(empirical((0, 0, 0, 0, 0)), MODEL, axes())


def test_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.ticker", None)
    with pytest.raises(ImportError, match=r"pip install 'semivario-kernels\[variogram\]'"):
        plot_variogram(None, MODEL)


def test_a_linear_axis_starts_at_zero_and_ends_at_four_ranges():
    ax = plot_variogram(empirical(), MODEL, axes(), scale="linear")
    assert ax.get_xscale() == "linear"
    assert ax.get_xlim() == (0, 4 * MODEL.range_km())
    curve = ax.lines[0]
    h_km, gamma = curve.get_data()
    assert h_km[0] == 0
    assert np.diff(h_km).min() > 0
    np.testing.assert_allclose(gamma, 0.1 + 0.8 * (1 - np.exp(-((h_km / 40) ** 0.5))), rtol=1e-12)
    (strip,) = ax.child_axes
    assert strip.patches[0].get_data().edges[0] == 0
    (label,) = [text for text in ax.texts if "range" in text.get_text()]
    assert label.get_ha() == "left"
    assert plot_variogram(empirical(), None, axes(), scale="linear").get_xlim() == (0, 10_000)


def test_the_figure_shows_both_axes(tmp_path):
    figure = variogram_figure(empirical(), MODEL)
    assert [ax.get_xscale() for ax in figure.axes] == ["log", "linear"]
    figure.savefig(tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 20_000


def test_a_sill_far_above_the_points_leaves_them_their_room():
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    plot_variogram(empirical(), VariogramModel("exponential", 0.1, 90.0, 1e6), ax)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where a layout leaves the axes no room
        figure.draw_without_rendering()
