import numpy as np
import pytest

from geoclip.places import read_places

from .small_world import write_store


def test_places_come_from_stores_arrays_and_tables(tmp_path):
    store = write_store(tmp_path / "store", n=20)
    np.testing.assert_array_equal(read_places(str(tmp_path / "store")), store.latlon)
    np.save(tmp_path / "places.npy", store.latlon)
    np.testing.assert_array_equal(read_places(str(tmp_path / "places.npy")), store.latlon)
    for header in ("LAT,LON", "latitude,longitude", "id,lng,lat"):
        names = header.split(",")
        of = {"lat": 0, "LAT": 0, "latitude": 0, "lng": 1, "LON": 1, "longitude": 1}
        lines = [",".join(repr(float(row[of[n]])) if n in of else "x" for n in names) for row in store.latlon]
        (tmp_path / "places.csv").write_text("\n".join([header, *lines]) + "\n")
        np.testing.assert_array_equal(read_places(str(tmp_path / "places.csv")), store.latlon)


def test_places_from_elsewhere_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_places(str(tmp_path / "nowhere.csv"))
    np.save(tmp_path / "words.npy", np.array(["here"]))
    with pytest.raises(ValueError, match=r"words\.npy"):
        read_places(str(tmp_path / "words.npy"))
    np.save(tmp_path / "three.npy", np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"three\.npy.*\(4, 3\)"):
        read_places(str(tmp_path / "three.npy"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.csv"):
        read_places(str(tmp_path / "empty.csv"))
    (tmp_path / "header.csv").write_text("lat,lon\n")
    with pytest.raises(ValueError, match=r"header\.csv: wanted at least one place"):
        read_places(str(tmp_path / "header.csv"))
    (tmp_path / "half.csv").write_text("lat,lon\n1,\n")
    with pytest.raises(ValueError, match=r"half\.csv.*row 1"):
        read_places(str(tmp_path / "half.csv"))


def test_places_come_within_180_and_one_after_the_other(tmp_path):
    np.save(tmp_path / "places.npy", np.array([[10.0, 20.0, -5.0], [350.0, -190.0, 7.0]]).T)
    (tmp_path / "places.csv").write_text("lat,lon\n10,350\n20,-190\n-5,7\n")
    for name in ("places.npy", "places.csv"):
        places = read_places(str(tmp_path / name))
        np.testing.assert_array_equal(places, [[10, -10], [20, 170], [-5, 7]])
        assert places.flags.c_contiguous
