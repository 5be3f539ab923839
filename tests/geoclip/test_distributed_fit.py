"""Two processes with gloo, started by torchrun, do what one process does with the same batches."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import geoclip
from geoclip.datamodule import PhotoBatches
from geoclip.fit import fit, read_curves
from geoclip.training_ranks import TrainingRanks

from .small_world import write_settings, write_store
from .test_resume import same

ROOT = Path(geoclip.__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Checkpoints and loss curves: of one process, of two, and of two that were stopped and went on."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ["--config", str(write_settings(folder, steps=9))]
    # an odd batch: the ranks' shares are 12 and 13 photos; float64, so that only errors make a difference
    settings += ["--data.batch_size=25", "--model.gallery=41", "--model.ema=0.9", "--model.refit_every=3"]
    settings += ["--data.sampler=geographic", "--data.nearest=3", "--data.further=2"]
    settings += ["--trainer.precision=64-true", "--trainer.accumulate_grad_batches=2"]
    fit([*settings, "--out", str(folder / "one")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [Path(__file__).parent / "fit_on_ranks.py", folder, 6, *settings]
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    result = subprocess.run(
        [str(part) for part in (*torchrun, *script, *options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    names = ("one", "whole", "parts")
    return {
        name: (torch.load(folder / name / "last.ckpt", weights_only=True), read_curves(folder / name))
        for name in names
    }


def close(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        if a.is_floating_point():
            assert a.dtype == b.dtype, path
            # Adam divides a gradient by its own size: rounding of a nearly zero one is what remains
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-7, atol=1e-9, msg=path)
        else:
            assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            close(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        for k, pair in enumerate(zip(a, b, strict=True)):
            close(*pair, f"{path}/{k}")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-9), path
    else:
        assert a == b, path


def test_two_processes_train_as_one_does(runs):
    (one, one_curves), (two, two_curves) = runs["one"], runs["whole"]
    assert two["global_step"] == 9
    # weights, average, queue and semivariogram; then the optimiser's state
    close(one["state_dict"], two["state_dict"])
    close(one["optimizer_states"], two["optimizer_states"])
    np.testing.assert_allclose(one_curves["loss"], two_curves["loss"], rtol=1e-6)  # as written to the CSV


def test_the_queue_holds_what_all_ranks_saw(runs):
    state = runs["whole"][0]["state_dict"]
    one = runs["one"][0]["state_dict"]
    assert torch.equal(state["queue.rows"], one["queue.rows"])
    assert torch.equal(state["queue.embeddings"], one["queue.embeddings"])
    assert len(set(state["queue.rows"].tolist())) > 25


def test_two_processes_resume_exactly(runs):
    (whole, _), (parts, _) = runs["whole"], runs["parts"]
    assert parts["global_step"] == 9
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        same(whole[part], parts[part], part)


def test_shares_cover_everything_once():
    for world in (1, 2, 3, 7):
        for n in (0, 1, 5, 7, 100):
            things = torch.arange(n)
            shares = TrainingRanks(0, world).shares(things)
            assert torch.equal(torch.cat(shares), things)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_gathers_from_itself():
    ranks, rows = TrainingRanks(), torch.arange(3)
    assert ranks.group is None
    assert torch.equal(ranks.gather(rows)[0], rows)
    assert ranks.from_first("value") == "value"


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path, monkeypatch):
    write_store(tmp_path / "train")
    data = PhotoBatches(str(tmp_path / "train"), batch_size=3)
    monkeypatch.setattr(TrainingRanks, "current", lambda: TrainingRanks(0, 4))
    data.trainer = object()
    with pytest.raises(
        ValueError, match="batch_size: wanted at least one photo for each of 4 processes, got 3"
    ):
        data.train_dataloader()
