import re

import numpy as np
import pytest
from scipy.integrate import quad

from geoclip.crossview.cvact import read_cvact
from geoclip.crossview.cvusa import read_cvusa
from geoclip.crossview.university1652 import read_university1652
from geoclip.crossview.utm import utm_to_latlon
from geoclip.crossview.vigor import read_vigor

from .trees import write_cvact, write_cvusa, write_university1652, write_vigor


def all_exist(views):
    return all(file.is_file() for file in (*views.query_files, *views.reference_files))


def test_cvusa(tmp_path):
    root = write_cvusa(tmp_path / "cvusa")
    train, val = read_cvusa(root, "train"), read_cvusa(str(root), "val")
    assert (len(train.query_files), len(val.query_files)) == (40, 12)
    assert all_exist(train)
    assert all_exist(val)
    assert train.query_files[0].parent.name == "panos"
    assert train.reference_files[0].parent.name == "19"
    assert not set(train.query_labels.tolist()) & set(val.query_labels.tolist())
    np.testing.assert_array_equal(train.pairs(), np.arange(40))
    # line i is image i's, counted from one, its panorama's columns
    lines = (root / "split_locations" / "all.csv").read_text().splitlines()
    for number, latlon in zip(train.query_labels, train.reference_latlon, strict=True):
        assert [float(cell) for cell in lines[number - 1].split(",")[2:4]] == latlon.tolist()
    (root / "split_locations" / "all.csv").unlink()
    assert read_cvusa(root, "train").reference_latlon is None


def test_cvusa_refuses(tmp_path):
    root = write_cvusa(tmp_path / "cvusa")
    with pytest.raises(ValueError, match="split: CVUSA has train and val, got 'test'"):
        read_cvusa(root, "test")
    with pytest.raises(FileNotFoundError, match=r"train-19zl\.csv: no such"):
        read_cvusa(tmp_path, "train")
    file = root / "splits" / "train-19zl.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[3]]))
    with pytest.raises(ValueError, match=r"train-19zl\.csv: wanted every id once, got \d{7} again"):
        read_cvusa(root, "train")
    file.write_text("\n".join(lines))
    locations = root / "split_locations" / "all.csv"
    whole = locations.read_text().splitlines()
    locations.write_text("\n".join(whole[:20]))
    with pytest.raises(ValueError, match=r"all\.csv: wanted a line for image \d+, got 20 lines"):
        read_cvusa(root, "train")
    locations.write_text("\n".join(line.replace(line.split(",")[2], "nan") for line in whole))
    with pytest.raises(ValueError, match="latitude nan"):
        read_cvusa(root, "train")


def test_cvact(tmp_path):
    root = write_cvact(tmp_path / "cvact")
    train, val, test = (read_cvact(root, split) for split in ("train", "val", "test"))
    assert [len(v.query_files) for v in (train, val, test)] == [20, 8, 5]
    assert all(all_exist(v) for v in (train, val, test))
    assert train.query_files[7].name == "pano_7x_grdView.jpg"
    assert val.reference_files[0].name == "pano_20x_satView_polish.jpg"
    # Canberra, within the box of its eastings and northings
    assert ((train.reference_latlon > (-35.6, 148.9)) & (train.reference_latlon < (-35.1, 149.4))).all()
    assert test.reference_latlon is None
    train.query_files[3].unlink()
    with pytest.warns(UserWarning, match="1 of 20 pairs have no images"):
        assert len(read_cvact(root, "train").query_files) == 19
    with pytest.raises(ValueError, match="got 'all'"):
        read_cvact(root, "all")


def test_utm_against_the_meridian_and_a_conformal_map():
    # along the central meridian the northing is 0.9996 times the meridian's arc
    a, f = 6378137.0, 1 / 298.257223563
    e2 = f * (2 - f)
    for degrees in (1.0, 35.3, 60.0):
        arc = quad(
            lambda t: a * (1 - e2) / (1 - e2 * np.sin(t) ** 2) ** 1.5, 0, np.radians(degrees), epsabs=1e-6
        )[0]
        latlon = utm_to_latlon(np.array([5e5]), np.array([1e7 - 0.9996 * arc]), 55, southern=True)
        np.testing.assert_allclose(latlon, [[-degrees, 147.0]], rtol=0, atol=1e-8)
    # elsewhere a metre east and a metre north are equally long on the ground, k = 0.9996·(1 + x²/2R²)
    east, north = (
        np.array([700_000.0, 701_000.0, 700_000.0]),
        np.array([6_090_000.0, 6_090_000.0, 6_091_000.0]),
    )
    latlon = np.radians(utm_to_latlon(east, north, 55, southern=True))
    sine = np.sin(latlon[0, 0])
    meridian = a * (1 - e2) / (1 - e2 * sine**2) ** 1.5
    parallel = a / (1 - e2 * sine**2) ** 0.5 * np.cos(latlon[0, 0])
    steps = (latlon[1:] - latlon[0]) * (meridian, parallel)
    k = 0.9996 * (1 + 200_500**2 / (2 * meridian * parallel / np.cos(latlon[0, 0])))
    np.testing.assert_allclose(np.hypot(*steps.T), 1000 / k, rtol=2e-4)
    assert abs(steps[0] @ steps[1]) < 300  # square metres of a million: at right angles
    with pytest.raises(ValueError, match="easting_m: wanted between 100,000 and 900,000 m, got 5"):
        utm_to_latlon(np.array([5.0]), np.array([6e6]), 55, southern=True)


@pytest.mark.parametrize("published", [True, False])
def test_vigor(tmp_path, published):
    root = write_vigor(tmp_path / "vigor", published=published)
    train, test = read_vigor(root, "train"), read_vigor(root, "test")
    assert len(train.query_files) == 4 * 18
    assert len(test.query_files) == 4 * 6
    assert len(train.reference_files) == 4 * 11  # the last of each city is nobody's positive
    assert len(test.reference_files) == 4 * 12
    assert all_exist(train)
    assert all_exist(test)
    for views in (train, test):
        pairs = views.pairs()
        for row, line in enumerate(_lines(root, views is train)):
            assert views.query_files[row].name == line[0]
            assert views.reference_files[pairs[row]].name == line[1]
            names = [views.reference_files[r].name for r in views.semi_positives[row] if r >= 0]
            kept = {file.name for file in views.reference_files}
            assert names == [line[c] for c in (4, 7, 10) if line[c] in kept]
    assert (train.semi_positives == -1).any()
    assert not (test.semi_positives == -1).any()
    assert test.reference_latlon[13].tolist() == [41.01, -80.02]
    cross = read_vigor(root, "train", area="cross"), read_vigor(root, "test", area="cross")
    assert [len(v.query_files) for v in cross] == [48, 48]
    assert {"NewYork", "Seattle"} <= set(str(cross[0].query_files).replace("'", "/").split("/"))
    assert "Chicago" not in str(cross[0].query_files) + str(cross[0].reference_files)
    assert "Seattle" not in str(cross[1].query_files) + str(cross[1].reference_files)


def _lines(root, train):
    for city in ("Chicago", "NewYork", "SanFrancisco", "Seattle"):
        file = root / "splits" / city / f"same_area_balanced_{'train' if train else 'test'}.txt"
        yield from (line.split() for line in file.read_text().splitlines())


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "satellite_list.txt",
            lambda t: t + t.splitlines()[2],
            r"satellite_list.*every id once, got satellite_",
        ),
        ("satellite_list.txt", lambda t: "\n".join(t.splitlines()[1:]), r"is not in satellite_list\.txt"),
        ("same_area_balanced_train.txt", lambda t: t + t.splitlines()[0], "every id once, got p0"),
        ("same_area_balanced_train.txt", lambda t: "p 1 2\n" + t, r"'1' is not in satellite_list"),
        (
            "same_area_balanced_train.txt",
            lambda t: " ".join(["p", *t.split()[1:4]]) + "\n" + t,
            "wanted a panorama and four satellite images",
        ),
    ],
)
def test_vigor_refuses(tmp_path, file, change, message):
    root = write_vigor(tmp_path / "vigor")
    path = root / "splits" / "Seattle" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_vigor(root, "train")


def test_vigor_wants_known_words(tmp_path):
    with pytest.raises(ValueError, match="got 'val'"):
        read_vigor(tmp_path, "val")
    with pytest.raises(ValueError, match="area: wanted 'same' or 'cross', got 'far'"):
        read_vigor(tmp_path, "train", area="far")


def test_university1652(tmp_path):
    root = write_university1652(tmp_path / "university")
    train = read_university1652(root, "train")
    assert (len(train.query_files), len(train.reference_files)) == (28, 7)
    assert all(
        file.parent.name == f"{label:04}"
        for file, label in zip(train.query_files, train.query_labels, strict=True)
    )
    assert [train.reference_files[r].parent.name for r in train.pairs()] == [
        f.parent.name for f in train.query_files
    ]
    assert train.reference_latlon is None
    drone, satellite = (read_university1652(root, "test", query=view) for view in ("drone", "satellite"))
    assert (len(drone.query_files), len(drone.reference_files)) == (15, 8)
    assert (len(satellite.query_files), len(satellite.reference_files)) == (5, 24)
    with pytest.raises(ValueError, match="wanted every label once for training, got 100 twice"):
        satellite.pairs()
    with pytest.raises(ValueError, match=re.escape("got train, satellite")):
        read_university1652(root, "train", query="satellite")
    (root / "train" / "drone" / "x").mkdir()
    with pytest.raises(ValueError, match="named by a building's number"):
        read_university1652(root, "train")
