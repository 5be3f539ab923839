import json

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.semivariogram.cases import AUTHORS, FLOOR, QUICK, PeakCase, authors_edges_km
from benchmarks.semivariogram.contenders import (
    FLOOR_ROWS,
    authors_run,
    float64_bins,
    gstools_run,
    half_product_run,
    scikit_gstat_run,
)
from benchmarks.semivariogram.field import make_field
from benchmarks.semivariogram.measure import compare, measure_case
from benchmarks.semivariogram.memory import measure_peaks
from semivario_kernels import available_backends, binned_semivariance

EXACT, GSTOOLS, SCIKIT_LEARN, *_, GSTAT = QUICK


def ignore(*_: object) -> None:
    pass


def test_quick_run_writes_checked_ratios_and_a_table(tmp_path, capsys) -> None:
    assert main(["semivariogram", "--quick", "--out", str(tmp_path)]) == 0
    (json_file,) = tmp_path.glob("*.json")
    result = json.loads(json_file.read_text())
    assert json_file.stem == f"semivariogram-cpu-{result['date']}-quick"
    assert result["machine"]["versions"]["gstools"]
    ours = available_backends()[0]
    assert [row["contender"] for row in result["times"]] == [n for case in QUICK for n in (case.rival, ours)]
    for rival, row in zip(result["times"][::2], result["times"][1::2], strict=True):
        assert rival["failure"] is None
        assert row["failure"] is None
        assert row["right"] is True
        assert row["error"] < 1e-6
        assert row["moved_pairs"] == 0
        assert row["floor_s"] == rival["floor_s"]
        assert row["to_floor"] == pytest.approx(row["median_s"] / row["floor_s"])
        share = row["median_s"] / rival["median_s"]
        assert row["ratio"] == pytest.approx(share if row["is_ceiling"] else 1 / share)
        if row["bar"] is not None:
            assert row["met"] == (
                row["ratio"] <= row["bar"] if row["is_ceiling"] else row["ratio"] >= row["bar"]
            )
    (peak,) = result["memory"]
    assert peak["contender"] == ours
    assert peak["extra_mib"] == pytest.approx(peak["peak_mib"] - min(peak["baseline_mib"]))
    table = json_file.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert "scaled up from 100 of 3,142 mask passes" in table
    assert {line.count(" | ") for line in table.splitlines() if line.startswith("|")} == {7, 8}


def test_a_run_that_is_stopped_keeps_its_finished_cases(tmp_path, monkeypatch) -> None:
    measured = []

    def stopping(case, *, on_round):
        if measured:
            raise KeyboardInterrupt
        measured.append(case)
        return measure_case(case, on_round=on_round)

    monkeypatch.setattr("benchmarks.__main__.measure_semivariogram", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(["semivariogram", "--quick", "--out", str(tmp_path)])
    (json_file,) = tmp_path.glob("*-quick-unfinished.json")
    rows = json.loads(json_file.read_text())["times"]
    assert [row["case"] for row in rows] == [QUICK[0].name] * 2
    assert rows[1]["ratio"] > 0
    assert f"| {QUICK[0].name} |" in json_file.with_suffix(".md").read_text()


def test_without_a_subject_both_are_measured(tmp_path) -> None:
    assert main(["--quick", "--seconds", "0", "--only", "none", "exact", "--out", str(tmp_path)]) == 0
    names = sorted(file.name.split("-quick-")[1] for file in tmp_path.glob("*.json"))
    assert names == ["exact.json", "none.json"]


@pytest.mark.parametrize("places", ["sphere", "poles and duplicates"])
def test_the_float64_oracle_is_the_reference(places) -> None:
    field = make_field(301, 17)
    if places != "sphere":
        field.latlon[::7] = torch.tensor([90.0, 3.0])
        field.latlon[1::9] = field.latlon[4]
    edges_km = np.array([0.0, 10.0, 500.0, 505.0, 3_000.0, 12_000.0])
    wanted = binned_semivariance(
        field.embeddings.double(), field.latlon, edges_km=edges_km, backend="reference"
    )
    got = float64_bins(field, edges_km, rows=64)
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_allclose(got.gamma, wanted.gamma, rtol=1e-10)


def test_gstools_counts_pairs_and_sums_the_fields() -> None:
    field = make_field(GSTOOLS.n, GSTOOLS.e)
    edges_km = GSTOOLS.edges_km.copy()
    got, seconds = gstools_run(GSTOOLS, field)()
    wanted = float64_bins(field, edges_km)
    np.testing.assert_array_equal(GSTOOLS.edges_km, edges_km)
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_allclose(got.gamma, wanted.gamma, rtol=1e-10)
    assert seconds > 0


def test_scikit_gstat_bins_the_same_pairs() -> None:
    field = make_field(GSTAT.n, GSTAT.e)
    field.latlon[:2] = torch.tensor([[12.0, 34.0], [-12.0, -146.0]])  # antipodes
    got, seconds = scikit_gstat_run(GSTAT, field)()
    wanted = float64_bins(field, GSTAT.edges_km)
    np.testing.assert_array_equal(got.counts, wanted.counts)
    np.testing.assert_allclose(got.gamma, wanted.gamma, rtol=1e-10)
    assert seconds > 0


def test_the_authors_way_counts_pairs_once_and_marks_what_it_left_out() -> None:
    field = make_field(SCIKIT_LEARN.n, SCIKIT_LEARN.e)
    got, seconds = authors_run(SCIKIT_LEARN, field)()
    wanted = float64_bins(field, SCIKIT_LEARN.edges_km)
    assert len(SCIKIT_LEARN.edges_km) == 3143
    made = got.counts >= 0
    assert made.sum() == SCIKIT_LEARN.passes
    np.testing.assert_array_equal(got.counts[made], wanted.counts[made])
    np.testing.assert_allclose(got.gamma[made], wanted.gamma[made], rtol=1e-5)
    assert np.isnan(got.gamma[~made]).all()
    assert seconds > 0


def test_half_the_product_is_half_of_it(monkeypatch) -> None:
    multiplied = []
    mm = torch.mm

    def counted(a, b, *, out):
        multiplied.append(a.shape[0] * b.shape[1])
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counted)
    n = 3 * FLOOR_ROWS + 5
    assert half_product_run(make_field(n, 4))()[0] is None
    assert n * n / 2 < sum(multiplied) <= n * (n + FLOOR_ROWS) / 2


def test_moved_pairs_and_gamma_are_told_apart() -> None:
    field = make_field(200, 16)
    right = float64_bins(field, EXACT.edges_km)
    assert compare(right, right) == (0, 0)
    filled = np.flatnonzero(right.counts)
    moved = right.counts.copy()
    moved[filled[0]] -= 1
    moved[filled[1]] += 1
    assert compare(type(right)(moved, right.gamma), right) == (0, 2)
    gamma = right.gamma.copy()
    gamma[filled[-1]] += 1e-3 * np.nanmax(gamma)
    error, pairs = compare(type(right)(right.counts, gamma), right)
    assert error == pytest.approx(1e-3, rel=1e-6)
    assert pairs == 0
    gamma[filled[-1]] = np.nan
    assert np.isnan(compare(type(right)(right.counts, gamma), right)[0])


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_wrong_semivariogram_gets_no_ratio(case, monkeypatch) -> None:
    def slightly_wrong(embeddings, latlon, **options):
        # only where it is asked for this case's bins: the unpruned rival stays right
        made = binned_semivariance(embeddings, latlon, **options)
        if len(options["edges_km"]) == len(case.edges_km):
            made.gamma[:] *= 1.0001
        return made

    monkeypatch.setattr("benchmarks.semivariogram.contenders.binned_semivariance", slightly_wrong)
    _, row = measure_case(case, on_round=ignore)
    assert row["failure"] is None
    assert row["error"] == pytest.approx(1e-4, rel=0.2)
    assert row["right"] is False
    assert row["ratio"] is None
    assert not row["met"]


@pytest.mark.parametrize("broken", ["rival", "ours"])
def test_whoever_fails_is_named(broken, monkeypatch) -> None:
    def fails(*arguments, **options):
        raise NotImplementedError("no such thing\nand more")

    target = {"rival": "half_product_run", "ours": "binned_semivariance"}[broken]
    monkeypatch.setattr(f"benchmarks.semivariogram.contenders.{target}", fails)
    rows = dict(zip(("rival", "ours"), measure_case(EXACT, on_round=ignore), strict=True))
    assert rows["rival"]["contender"] == FLOOR
    other = {"rival": "ours", "ours": "rival"}[broken]
    assert rows[broken]["failure"] == "NotImplementedError: no such thing"
    assert rows[other]["failure"] is None
    assert rows["ours"]["ratio"] is None


def test_the_peak_sees_the_full_matrices() -> None:
    n = 2_000
    (row,) = measure_peaks(
        [PeakCase(n, 8, authors_edges_km(0.5), contender=AUTHORS, bar_mib=None)], on_case=ignore
    )
    assert row["failure"] is None
    matrices_mib = n * n * (8 + 4) / 2**20  # float64 distances, float32 dissimilarities
    assert matrices_mib < row["extra_mib"] < 4 * matrices_mib
    assert row["met"] is None
