import json
import re

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.cases import NAIVE, PRODUCTS, QUICK, Case, MemoryCase
from benchmarks.measure import largest_error, measure_case
from benchmarks.memory import measure_memory
from benchmarks.naive import naive_info_nce
from benchmarks.operator_cases import distances, top_k
from benchmarks.operator_memory import measure_peaks
from benchmarks.operators import measured
from benchmarks.timing import interleaved_seconds
from semivario_kernels import available_backends

CPU = torch.device("cpu")


def ignore(*_: object) -> None:
    pass


def test_quick_run_writes_json_and_table(tmp_path, capsys) -> None:
    assert main(["loss", "--quick", "--seconds", "0.05", "--out", str(tmp_path)]) == 0
    (json_file,) = tmp_path.glob("cpu-*-quick.json")
    result = json.loads(json_file.read_text())
    machine = result["machine"]
    assert machine["versions"]["torch"] == torch.__version__.split("+")[0]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["processor"]
    assert json_file.stem == f"cpu-{result['date']}-quick"

    backends = available_backends()
    rows = result["times"]
    assert [row["contender"] for row in rows] == [NAIVE, PRODUCTS, *backends] * len(QUICK)
    for row in rows:
        low, high = row["quartiles_s"]
        assert len(row["seconds"]) >= 3
        assert 0 < min(row["seconds"]) <= low <= row["median_s"] <= high
        assert row["failure"] is None
        assert row["right"] is (None if row["contender"] == PRODUCTS else True)
        if row["role"] == "ours":
            naive = next(r for r in rows if r["case"] == row["case"] and r["contender"] == NAIVE)
            assert row["speedups"][NAIVE] == pytest.approx(naive["median_s"] / row["median_s"])
            assert row["error"] < 1e-4
        assert bool(row["bars"]) == (row["contender"] == backends[0] and row["case"] in ("forward", "mean"))
    (memory,) = result["memory"]
    assert memory["contender"] == backends[0]
    assert memory["extra_mib"] == pytest.approx(memory["peak_mib"] - min(memory["baseline_mib"]))
    assert len(memory["baseline_mib"]) == 2

    table = json_file.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    assert all(table.count(f"| {case.name} | ") == 2 + len(backends) for case in QUICK)
    widths = {line.count(" | ") for line in table.splitlines() if line.startswith("|")}
    assert widths == {11, 7}


def test_only_names_cases_and_keeps_its_own_file(tmp_path) -> None:
    assert main(["--quick", "--seconds", "0", "--only", "none", "--out", str(tmp_path)]) == 0
    (json_file,) = tmp_path.glob("cpu-*-quick-none.json")
    result = json.loads(json_file.read_text())
    assert {row["case"] for row in result["times"]} == {"none"}
    assert result["memory"] == []


def test_growth_and_operators_are_checked_and_plotted(tmp_path) -> None:
    only = ["--only", "growth", "operators"]
    assert main(["--quick", "--seconds", "0", *only, "--out", str(tmp_path)]) == 0
    (growth_file,) = tmp_path.glob("growth-cpu-*-quick-growth.json")
    growth = json.loads(growth_file.read_text())
    assert {(row["case"], row["n"], row["m"]) for row in growth["times"]} == {
        ("by M", 32, 48),
        ("by M", 32, 96),
    }
    assert growth_file.with_suffix(".svg").read_text().startswith("<?xml")
    (operators_file,) = tmp_path.glob("operators-cpu-*-quick-operators.json")
    rows = json.loads(operators_file.read_text())["times"]
    assert {row["case"] for row in rows} == {"distances", "top-10", "neighbour batch", "reading"}
    for row in rows:
        assert row["failure"] is None
        # float32's haversine formula loses metres to kilometres near the antipode, on some processors here
        assert row["right"] is True or row["contender"] == "naive torch, float32"
        assert row["memory"] is None
        assert len(row["seconds"]) >= 3
        if row["role"] == "ours":
            rivals = [r for r in rows if r["case"] == row["case"] and r["role"] == "rival" and r["right"]]
            assert row["speedups"] == {
                r["contender"]: pytest.approx(r["median_s"] / row["median_s"]) for r in rivals
            }
        assert row["floor_s"] > 0
        assert row["to_floor"] == (pytest.approx(row["median_s"] / row["floor_s"]) if row["right"] else None)


def test_memory_of_an_operator_holds_its_result_and_what_is_made_on_the_way() -> None:
    n, m = 1024, 16_384
    (row,) = measure_peaks(distances, n, m, ["scikit-learn"]).values()
    result_mib = n * m * 8 / 2**20
    assert row["failure"] is None
    assert 1.9 * result_mib < row["extra_mib"] < 4 * result_mib
    assert len(row["baseline_mib"]) == 2
    assert row["resolution_mib"] < 16


def test_a_wrong_operator_gets_no_speedup(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.operator_cases.topk_gallery", lambda x, y, k, backend: (x[:, :k],))
    with top_k(16, 48) as operator:
        rows = measured(operator, 0, (1e9, 1e9), ignore)
    for row in rows:
        assert row["right"] is (row["role"] == "rival")
        assert row["floor_s"] == 2 * 16 * 48 * 512 / 1e9  # longer than its bytes would take
        assert row["speedups"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "fast"],
            "--only: wanted some of forward-8k, .*memory, exact, .*peak, growth, operators, got fast",
        ),
        (["semivariogram", "--only", "memory"], "--only: wanted some of exact, .*peak, got memory"),
        (["variance"], "subject: invalid choice: 'variance'"),
        (["--device", "abacus"], "--device: wanted cpu or cuda, got 'abacus'"),
        (["--device", "meta"], "--device: wanted cpu or cuda, got 'meta'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, tmp_path) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--out", str(tmp_path)])
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_wrong_backend_gets_no_speedup(monkeypatch) -> None:
    def slightly_wrong(*arguments, backend, **options):
        return 1.01 * naive_info_nce(*arguments, **options)

    monkeypatch.setattr("benchmarks.contenders.semivariogram_info_nce", slightly_wrong)
    rows = measure_case(QUICK[1], CPU, budget_s=0, on_round=ignore)
    ours = [row for row in rows if row["role"] == "ours"]
    assert ours
    for row in ours:
        assert row["error"] == pytest.approx(0.01, rel=1e-3)
        assert row["right"] is False
        assert row["speedups"] == {}
        assert row["to_floor"] is None
        assert not any(bar["met"] for bar in row["bars"])


def test_a_contender_that_fails_spoils_its_row_only(monkeypatch) -> None:
    def broken(*arguments, **options):
        raise NotImplementedError("no such kernel\nand more")

    monkeypatch.setattr("benchmarks.contenders.semivariogram_info_nce", broken)
    rows = measure_case(QUICK[1], CPU, budget_s=0, on_round=ignore)
    assert {row["failure"] for row in rows if row["role"] == "ours"} == {
        "NotImplementedError: no such kernel"
    }
    assert next(row for row in rows if row["contender"] == NAIVE)["median_s"] > 0


def test_an_all_zero_gradient_of_the_negatives_is_an_error_of_one() -> None:
    dy = torch.cat([torch.ones(4, 3), torch.full((6, 3), 1e-3)])
    oracle = (torch.tensor(2.0), torch.ones(4, 3), dy, torch.tensor(0.5))
    wrong = (*oracle[:2], torch.cat([dy[:4], torch.zeros(6, 3)]), oracle[3])
    assert largest_error(oracle, oracle, 4) == 0
    assert largest_error(wrong, oracle, 4) == pytest.approx(1)
    nan = (torch.tensor(float("nan")), *oracle[1:])
    assert not largest_error(nan, oracle, 4) <= 1


def test_rounds_are_interleaved_and_three_at_least() -> None:
    order = []
    seconds = interleaved_seconds(
        {name: lambda name=name: order.append(name) for name in "ABC"},
        device=CPU,
        budget_s=0,
        on_round=ignore,
    )
    assert "".join(order) == "ABC" * 3
    assert {name: len(times) for name, times in seconds.items()} == {"A": 3, "B": 3, "C": 3}


def test_products_are_made_twice_where_the_gradient_cannot_ride_along() -> None:
    assert Case("", 2, 2).product_passes == 1
    assert Case("", 2, 2, reduction="none").product_passes == 2
    assert Case("", 2, 2, symmetric=True).product_passes == 2
    assert Case("", 2, 2, symmetric=True, backward=False).product_passes == 1


def test_memory_sees_the_tensors_of_pairs_whatever_this_process_used() -> None:
    large = torch.ones(2**27)  # 512 MiB that a child process must not inherit as its peak
    del large
    (row,) = measure_memory(
        [MemoryCase(1024, 8192, d=8, e=8, contender=NAIVE, bar_mib=96)], CPU, on_case=ignore
    )
    pairs_mib = 1024 * 8192 * 4 / 2**20
    assert 4 * pairs_mib < row["extra_mib"] < 12 * pairs_mib
    assert row["resolution_mib"] < 8
    assert row["met"] is False
