import json

import numpy as np
import pytest
import torch

from geoclip.demo import RUNS, run_demo
from geoclip.embedding_store import EmbeddingStore
from geoclip.metrics import THRESHOLDS_KM
from geoclip.upstream import UpstreamUnavailable, fetch_upstream
from semivario_kernels import EmpiricalVariogram, VariogramModel

from ..readme_commands import run_make_line, shell_line

PLACES, HELD_OUT, STEPS = 1000, 60, 5
SMALL = {"places": PLACES, "held_out": HELD_OUT, "steps": STEPS}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """README's line, on the official location encoder's field, but small."""
    try:
        fetch_upstream()
    except UpstreamUnavailable as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("runs") / "demo"
    flags = f"--out {out} --places {PLACES} --held-out {HELD_OUT} --steps {STEPS}"
    printed = run_make_line(shell_line("make demo"), DEMO_FLAGS=flags)
    assert f"report:  {out / 'report.html'}" in printed
    return out


def test_metrics_and_report_are_written(demo):
    result = json.loads((demo / "metrics.json").read_text())
    assert "no photo was used" in result["note"].lower()
    assert list(result["runs"]) == list(RUNS)
    for metrics in [*result["runs"].values(), *result["difference"].values()]:
        for name in [*(f"within_{km}_km" for km in THRESHOLDS_KM), "median_km", "geoscore"]:
            entry = metrics[name]
            assert entry["low"] <= entry["value"] <= entry["high"]
    first, _, last = result["runs"].values()
    (difference,) = result["difference"].values()
    assert difference["median_km"]["value"] == pytest.approx(
        last["median_km"]["value"] - first["median_km"]["value"]
    )
    assert {"data", "semivariogram", "training", "evaluation"} <= set(result["seconds"])
    page = (demo / "report.html").read_text()
    assert "No photo was used" in page
    assert all(run in page for run in RUNS)


def test_the_semivariogram_saw_training_places_only(demo):
    empirical = EmpiricalVariogram.load(demo / "variogram.npz")
    n = len(EmbeddingStore.open(demo / "world" / "train"))
    assert PLACES - 2 * HELD_OUT < n <= PLACES - HELD_OUT
    assert empirical.counts.sum() <= n * (n - 1) // 2
    assert empirical.counts.sum() > 0.99 * n * (n - 1) // 2
    model = VariogramModel.load(demo / "variogram.json")
    assert 0 < model.sill < 2


def test_the_runs_share_their_start_and_differ_in_policy(demo):
    checkpoints = {
        folder: torch.load(demo / folder / "last.ckpt", weights_only=True) for folder, _ in RUNS.values()
    }
    plain, random, explained = (checkpoints[name] for name in ("plain", "random", "explained"))
    assert plain["hyper_parameters"]["policy"] == random["hyper_parameters"]["policy"] == "none"
    assert explained["hyper_parameters"]["policy"] == "explained"
    b = "model.location_encoder.LocEnc0.capsule.0.b"
    assert torch.equal(plain["state_dict"][b], explained["state_dict"][b])
    # the same batches in the same order
    assert torch.equal(plain["state_dict"]["queue.rows"], explained["state_dict"]["queue.rows"])
    assert not torch.equal(plain["state_dict"]["queue.rows"], random["state_dict"]["queue.rows"])
    weight = "model.location_encoder.LocEnc0.capsule.1.weight"
    assert not torch.equal(plain["state_dict"][weight], explained["state_dict"][weight])


def test_a_stopped_demo_goes_on(demo):
    before = (demo / "metrics.json").read_text()
    checkpoints = {folder: (demo / folder / "last.ckpt") for folder, _ in RUNS.values()}
    written = {folder: file.stat().st_mtime_ns for folder, file in checkpoints.items()}
    weights = torch.load(checkpoints["explained"], weights_only=True)["state_dict"]
    checkpoints["explained"].unlink()  # as if it had been stopped while this run trained
    (demo / "metrics.json").unlink()
    run_demo(demo, **SMALL)
    again = torch.load(checkpoints["explained"], weights_only=True)["state_dict"]
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, again[name]), name
    for folder in ("plain", "random"):  # finished: left alone
        assert checkpoints[folder].stat().st_mtime_ns == written[folder]
    runs = [json.loads(text)["runs"] for text in (before, (demo / "metrics.json").read_text())]
    assert runs[0] == runs[1]


def test_other_settings_are_refused(demo):
    with pytest.raises(ValueError, match=f"steps: .*holds a demo of {STEPS} steps, got 6"):
        run_demo(demo, **{**SMALL, "steps": 6})
    with pytest.raises(ValueError, match="noise"):
        run_demo(demo, noise=0.1, **SMALL)
    with pytest.raises(ValueError, match="held_out"):
        run_demo(demo, **{**SMALL, "held_out": 5000})
    assert np.isfinite(json.loads((demo / "metrics.json").read_text())["seconds"]["training"])
