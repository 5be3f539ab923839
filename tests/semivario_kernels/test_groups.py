import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from places import random_latlon
from sklearn.metrics.pairwise import haversine_distances

from semivario_kernels import EARTH_RADIUS_KM, binned_semivariance, grouped_semivariance, plot_groups

EDGES_KM = np.array([0.0, 900.0, 2500.0, 6000.0, 12000.0, 20100.0])
LABELS = np.array(["Asia", "Africa", "Europe"])


def some_embeddings(n=240, dim=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    latlon = random_latlon(n, seed)
    smooth = torch.sin(latlon @ torch.randn(2, dim, generator=generator, dtype=torch.float64) / 40)
    return smooth + 0.3 * torch.randn(n, dim, generator=generator, dtype=torch.float64), latlon


def labels_of(n=240, seed=3):
    return LABELS[np.random.default_rng(seed).integers(0, 3, n)]


def test_each_group_holds_its_own_pairs_and_no_other():
    """Against all pairs in NumPy, distances by scikit-learn."""
    v, latlon = some_embeddings()
    labels = labels_of()
    found = grouped_semivariance(v, latlon, labels, edges_km=EDGES_KM)
    assert list(found) == sorted(LABELS)
    unit = (v / v.norm(dim=1, keepdim=True)).numpy()
    h_km = EARTH_RADIUS_KM * haversine_distances(np.radians(latlon.numpy()))
    for name, empirical in found.items():
        member = labels == name
        pairs = np.triu(member[:, None] & member[None], 1)
        assert empirical.counts.sum() == member.sum() * (member.sum() - 1) / 2
        for k in range(5):
            inside = pairs & (h_km >= EDGES_KM[k]) & (h_km < EDGES_KM[k + 1])
            assert empirical.counts[k] == inside.sum()
            assert empirical.gamma[k] == pytest.approx((1 - unit @ unit.T)[inside].mean(), abs=1e-6)
            assert empirical.lag_km[k] == pytest.approx(h_km[inside].mean(), rel=1e-6)


@pytest.mark.parametrize(
    "groups",
    [
        [i % 3 for i in range(240)],
        np.arange(240) % 3,
        torch.arange(240) % 3,
        (torch.arange(240) % 3).to(torch.int16),
    ],
    ids=["list", "array", "tensor", "int16 tensor"],
)
def test_labels_of_any_kind(groups):
    v, latlon = some_embeddings()
    found = grouped_semivariance(v.numpy(), latlon.numpy(), groups, edges_km=EDGES_KM)
    assert list(found) == [0, 1, 2]
    assert all(type(label) is int for label in found)
    for k in range(3):
        alone = binned_semivariance(v[k::3], latlon[k::3], edges_km=EDGES_KM)
        np.testing.assert_array_equal(found[k].counts, alone.counts)
        np.testing.assert_allclose(found[k].gamma, alone.gamma, rtol=1e-9)


class Unknown:
    """As pandas.NA: whether it equals itself is unknown, too."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError("ambiguous")

    __hash__ = None


@pytest.mark.parametrize("missing", [None, float("nan"), Unknown()])
def test_rows_without_a_label_belong_to_no_group(missing):
    v, latlon = some_embeddings()
    labels = labels_of().tolist()
    with_holes = [missing if i % 4 == 0 else label for i, label in enumerate(labels)]
    kept = np.arange(240) % 4 != 0
    found = grouped_semivariance(v, latlon, with_holes, edges_km=EDGES_KM, min_places=5)
    expected = grouped_semivariance(
        v[kept], latlon[kept], np.array(labels)[kept], edges_km=EDGES_KM, min_places=5
    )
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_array_equal(found[name].counts, expected[name].counts)


def test_small_groups_are_left_out_by_name():
    v, latlon = some_embeddings()
    labels = labels_of().astype(object)
    labels[:7] = "Oceania"
    labels[7] = "Antarctica"
    v[8:20] = 0  # no image: they are no places of their group
    with pytest.warns(
        UserWarning, match=r"left out.* 30 places.*: Antarctica \(1 places\), Oceania \(7 places\)$"
    ):
        found = grouped_semivariance(v, latlon, labels, edges_km=EDGES_KM)
    assert list(found) == sorted(LABELS)
    with pytest.warns(UserWarning, match=r"Antarctica \(1 places\)$"):
        found = grouped_semivariance(v, latlon, labels, edges_km=EDGES_KM, min_places=2)
    assert found["Oceania"].counts.sum() == 21
    with_image = (labels == "Asia").sum() - (labels[8:20] == "Asia").sum()
    assert found["Asia"].counts.sum() == with_image * (with_image - 1) / 2


def test_a_group_without_a_pair_in_any_bin_is_left_out_by_name():
    v, latlon = some_embeddings(80)
    latlon[:40] = latlon[:1] + 0.01 * torch.rand(40, 2, dtype=torch.float64)  # one town
    labels = ["town"] * 40 + ["world"] * 40
    with pytest.warns(UserWarning, match=r"town \(no pair in any bin\)"):
        found = grouped_semivariance(v, latlon, labels, edges_km=EDGES_KM[1:])
    assert list(found) == ["world"]


def test_options_reach_every_group():
    v, latlon = some_embeddings()
    options = {"edges_km": EDGES_KM, "estimator": "cressie-hawkins", "max_lag_km": 6000.0, "backend": "tiled"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few pairs in a bin
        found = grouped_semivariance(v, latlon, labels_of(), **options)
    assert {empirical.estimator for empirical in found.values()} == {"cressie-hawkins"}
    assert {empirical.edges_km[-1] for empirical in found.values()} == {6000.0}


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        (["a"] * 239, {}, r"groups: wanted shape \(240,\), a label for each embedding, got \(239,\)"),
        ([["a"]] * 240, {}, r"groups: wanted shape \(240,\).* got \(240, 1\)"),
        ([None] * 240, {}, "groups: wanted .* got no label but None or NaN"),
        (list(range(240)), {"min_places": 2}, r"groups: wanted at least 2 places .* got 0 \(1 places\), 1 "),
        (np.array([1, "a"] * 120, dtype=object), {}, "groups: wanted labels of one kind, that can be sorted"),
        (["a"] * 240, {"min_places": 1}, "min_places: wanted .* got 1"),
        (["a"] * 240, {"edges_km": [3.0, 2.0]}, "edges_km: wanted finite edges"),
        (["a"] * 240, {"estimator": "median"}, "estimator: wanted one of"),
    ],
)
def test_bad_arguments_are_refused(groups, options, message):
    v, latlon = some_embeddings()
    with pytest.raises(ValueError, match=message):
        grouped_semivariance(v, latlon, groups, **{"edges_km": EDGES_KM, **options})


def test_one_line_per_group():
    v, latlon = some_embeddings()
    found = grouped_semivariance(v, latlon, labels_of(), edges_km=EDGES_KM)
    ax = plot_groups(found, Figure().add_subplot())
    assert len(ax.lines) == 3
    for line, (name, empirical) in zip(ax.lines, found.items(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), empirical.lag_km)
        np.testing.assert_allclose(line.get_ydata(), empirical.gamma)
        assert line.get_label().startswith(name)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "distance, km"
    assert [text.get_text().split()[0] for text in ax.get_legend().get_texts()] == sorted(LABELS)
    many = plot_groups(dict.fromkeys(range(23), found["Asia"]), Figure().add_subplot())
    assert len({to_hex(line.get_color()) for line in many.lines}) == 23
    with pytest.raises(ValueError, match="variograms: wanted at least one"):
        plot_groups({}, Figure().add_subplot())
