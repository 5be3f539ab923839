import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from geoclip.figures import (
    plot_curves,
    plot_error_distribution,
    plot_error_map,
    plot_surprise,
    run_colors,
)
from geoclip.location_encoder import equal_earth
from geoclip.metrics import geolocation_metrics, great_circle_km


def axes():
    return Figure().add_subplot()


def random_latlon(n, seed):
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(-55, 75, n), rng.uniform(-180, 180, n)], axis=1)


def surprise_cells(ax):
    """Column edges in km, row edges, and the shares (columns, rows) of the drawn density."""
    (mesh,) = [artist for artist in ax.collections if hasattr(artist, "get_coordinates")]
    corners = mesh.get_coordinates()
    shape = corners.shape[0] - 1, corners.shape[1] - 1
    return corners[0, :, 0], corners[:, 0, 1], np.ma.filled(mesh.get_array(), 0).reshape(shape).T


# --- surprise ---


def test_surprise_is_gamma_minus_d_spread_over_each_distance():
    rng = np.random.default_rng(0)
    h = np.concatenate([np.full(30, 2.0), np.full(6000, 500.0), np.full(4, 9000.0)])
    gamma = np.where(h < 10, 0.2, 0.9)
    d = gamma - np.concatenate(
        [np.full(30, 0.05), rng.choice([-0.3, 0.4], 6000, p=[0.25, 0.75]), np.zeros(4)]
    )
    ax = axes()
    plot_surprise(ax, h, d, gamma)
    h_edges, e_edges, share = surprise_cells(ax)
    near, middle, far = (np.searchsorted(h_edges, km, side="right") - 1 for km in (2.0, 500.0, 9000.0))
    row = {e: np.searchsorted(e_edges, e, side="right") - 1 for e in (0.05, -0.3, 0.4)}
    # the 30 near pairs show as much as the 6,000 others; 4 pairs are too few for a density
    assert share[near, row[0.05]] == 1
    assert share[middle, row[-0.3]] == pytest.approx(0.25, abs=0.03)
    assert share[middle].sum() == pytest.approx(1)
    assert share[far].sum() == 0
    assert np.count_nonzero(share.sum(axis=1)) == 2


def test_surprise_keeps_pairs_of_one_place_and_marks_the_regions():
    ax = axes()
    plot_surprise(ax, np.zeros(50), np.full(50, 0.1), np.full(50, 0.3), range_km=300.0)
    h_edges, e_edges, share = surprise_cells(ax)
    assert share[0].sum() == pytest.approx(1)
    assert e_edges[0] < 0 < 0.2 < e_edges[-1]
    assert ax.lines[1].get_xdata() == [300, 300]
    assert [text.get_text() for text in ax.texts if text.get_ha() == "left"][-1] == "false negatives"
    assert [text.get_text() for text in ax.texts if text.get_ha() == "right"][-1] == "hard negatives"
    assert ax.get_xlim() == (h_edges[0], h_edges[-1])


@pytest.mark.parametrize("range_km", [None, np.inf, 0.01])
def test_surprise_draws_no_border_off_the_axis(range_km):
    ax = axes()
    plot_surprise(ax, [10.0, 20.0], [0.1, 0.2], [0.3, 0.3], range_km)
    assert len(ax.lines) == 1


def test_surprise_refuses_bad_columns():
    with pytest.raises(ValueError, match=r"h_km.*per pair \(3\), got 2"):
        plot_surprise(axes(), [1.0, 2.0], [0.1] * 3, [0.2] * 3)
    with pytest.raises(ValueError, match=r"d: .*\(2,\).*\(1,\)"):
        plot_surprise(axes(), [1.0, 2.0], [0.1], [0.2, 0.3])
    with pytest.raises(ValueError, match=r"d: .*finite.*nan"):
        plot_surprise(axes(), [1.0, 2.0], [0.1, np.nan], [0.2, 0.3])
    with pytest.raises(ValueError, match=r"h_km: .*\(n,\).*\(0,\)"):
        plot_surprise(axes(), [], [], [])


# --- curves ---


def test_curves_draw_the_raw_values_and_their_running_mean():
    step = np.arange(0, 4000, 10)
    line = 3.0 - step / 2000
    wave = 0.5 * (-1.0) ** np.arange(400)
    ax = axes()
    plot_curves(ax, {"plain": {"step": step, "loss": line}, "weighted": {"step": step, "loss": line + wave}})
    raw, smooth, wavy_raw, wavy_smooth = (drawn.get_ydata() for drawn in ax.lines)
    np.testing.assert_allclose(raw, line)
    np.testing.assert_allclose(smooth, line, atol=1e-12)  # no bend at the ends
    np.testing.assert_allclose(wavy_raw, line + wave)
    assert np.abs(wavy_smooth - line)[20:-20].max() < 0.03
    assert [drawn.get_label() for drawn in ax.lines[1::2]] == ["plain", "weighted"]
    assert ax.get_ylabel() == "loss"


def test_curves_leave_out_what_was_not_recorded():
    runs = {
        "plain": {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]},
        "weighted": {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "logit_scale": [np.nan, 15.0, 16.0]},
    }
    ax = axes()
    plot_curves(ax, runs, "logit_scale")
    raw, _ = ax.lines
    np.testing.assert_array_equal(raw.get_data(), [[2, 3], [15, 16]])
    # a run has its colour in every figure, also where another run is missing
    assert raw.get_color() == run_colors(runs)["weighted"] != run_colors(runs)["plain"]
    assert ax.get_ylabel() == "logit scale"


def test_curves_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"plain's loss.*\(3,\).*\(2,\)"):
        plot_curves(axes(), {"plain": {"step": [1, 2, 3], "loss": [1.0, 2.0]}})


# --- map ---


def test_map_puts_every_place_on_equal_earth_coloured_by_its_error_the_worst_on_top():
    true, predicted, gallery = random_latlon(60, 1), random_latlon(60, 2), random_latlon(500, 3)
    predicted[0] = true[0]
    ax = axes()
    plot_error_map(ax, true, predicted, gallery)
    (points,) = ax.collections
    order = np.argsort(great_circle_km(predicted, true))
    np.testing.assert_allclose(
        points.get_offsets(), equal_earth(torch.from_numpy(true))[order].numpy(), rtol=1e-12
    )
    colored = points.get_array()
    assert colored[0] == 1  # an error of 0 km has no logarithm
    np.testing.assert_allclose(colored[1:], np.sort(great_circle_km(predicted, true))[1:], rtol=1e-12)
    land = max(ax.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(
        np.stack(land.get_data(), axis=1), equal_earth(torch.from_numpy(gallery)).numpy()
    )
    assert len(ax.figure.axes) == 2  # the colour bar
    left, right = ax.get_xlim()
    assert left == pytest.approx(-right)
    assert right == pytest.approx(equal_earth(torch.tensor([[0.0, 180.0]]))[0, 0].item(), rel=1e-6)


def test_map_refuses_predictions_of_other_queries():
    with pytest.raises(ValueError, match=r"predicted_latlon|latlon_a"):
        plot_error_map(axes(), random_latlon(5, 1), random_latlon(4, 2), random_latlon(9, 3))


# --- distribution ---


def test_distribution_passes_through_the_accuracies_of_the_table():
    rng = np.random.default_rng(4)
    true = random_latlon(2000, 5)
    predicted = true + np.clip(rng.normal(size=true.shape) * rng.lognormal(-1, 2, (2000, 1)), -14, 14)
    ax = axes()
    plot_error_distribution(ax, {"plain": great_circle_km(predicted, true), "weighted": [0.0] * 7})
    accuracy = geolocation_metrics(predicted, true, bootstrap=1)
    curve, exact = ax.lines[:2]
    error_km, share = curve.get_data()
    for threshold in (1, 25, 200, 750, 2500):
        drawn = share[error_km <= threshold].max()
        assert drawn == pytest.approx(accuracy[f"within_{threshold}_km"]["value"], abs=1.1e-3)
    assert set(exact.get_xdata()) == {ax.get_xlim()[0]}  # an exact hit stands at the left edge
    assert [text.get_text() for text in ax.texts] == ["1", "25", "200", "750", "2,500"]
    assert ax.get_ylim() == (0, 1)


def test_distribution_refuses_bad_errors():
    with pytest.raises(ValueError, match=r"error_km of plain.*\(n,\).*\(0,\)"):
        plot_error_distribution(axes(), {"plain": []})
    with pytest.raises(ValueError, match=r"error_km of plain.*finite.*inf"):
        plot_error_distribution(axes(), {"plain": [1.0, np.inf]})
