"""A run that was killed, or stopped by Ctrl-C, ends with the very weights of a run that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import geoclip
from geoclip.checkpoint import AtomicCheckpointIO
from geoclip.embedding_store import EmbeddingWriter
from geoclip.fit import fit, read_curves
from geoclip.training import GeoCLIPTraining
from semivario_kernels import VariogramModel

from .rendered_photos import random_latlon
from .small_world import embeddings_of, write_settings

ROOT = Path(geoclip.__file__).parents[1]
STEPS = 300  # seconds: a kill soon after a checkpoint comes long before the end


def start(settings, out):
    command = [sys.executable, "-m", "geoclip", "fit", "--config", settings, "--out", out]
    command += ["--checkpoint_every", 20]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and the tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def wait_for_a_later_checkpoint(checkpoint, process, than):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoint.exists() and step_of(checkpoint) > than:
            return
        time.sleep(0.02)
    pytest.fail(f"no checkpoint after step {than}: {process.stderr.read()}")


def same(a, b, path=""):
    """Assert that two nested structures of tensors and plain values are equal, bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for k, pair in enumerate(zip(a, b, strict=True)):
            same(*pair, f"{path}/{k}")
    else:
        assert a == b, path


@pytest.fixture
def one_thread():
    """The subprocesses have one: another number may add in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_and_interrupted_ends_with_the_same_weights(tmp_path, one_thread):
    """With all that a run carries from step to step: queue, gallery, average, refitted semivariogram."""
    settings = write_settings(tmp_path, steps=STEPS)
    settings.write_text(f"{settings.read_text()}  gallery: 60\n  ema: 0.9\n  refit_every: 50\n")
    options = ["--config", str(settings), "--checkpoint_every", "20", "--out"]
    checkpoint = tmp_path / "disturbed" / "last.ckpt"
    reached = 0
    for blow in (signal.SIGKILL, signal.SIGINT):
        process = start(settings, tmp_path / "disturbed")
        wait_for_a_later_checkpoint(checkpoint, process, than=reached)
        process.send_signal(blow)
        code = process.wait(timeout=60)
        assert code == (-9 if blow == signal.SIGKILL else 130)
        if blow == signal.SIGINT:
            assert process.stderr.read().strip().splitlines() == [
                f"going on from {checkpoint}, after step {reached:,}",
                "geoclip: interrupted; the same command goes on where it was",
            ]
        assert reached < step_of(checkpoint) < STEPS
        reached = step_of(checkpoint)
    fit([*options, str(tmp_path / "disturbed")])
    fit([*options, str(tmp_path / "undisturbed")])

    first, second = (
        torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("undisturbed", "disturbed")
    )
    assert first["global_step"] == second["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        same(first[part], second[part], part)
    # no step is missing from the log but the last before a kill, and none was another than undisturbed
    curves = [read_curves(tmp_path / run) for run in ("undisturbed", "disturbed")]
    assert curves[1]["step"][-1] == STEPS - 1
    both = set(curves[0]["step"]) & set(curves[1]["step"])
    assert len(both) > 0.9 * STEPS
    losses = [dict(zip(c["step"], c["loss"], strict=True)) for c in curves]
    assert all(losses[0][step] == losses[1][step] for step in both)


def test_a_training_ends_with_the_process_that_began_it(tmp_path):
    settings = write_settings(tmp_path, steps=100_000)
    parent = f"""
import os, pathlib, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-m", "geoclip", "fit", "--config", {str(settings)!r}],
    env={{**os.environ, "GEOCLIP_PARENT": str(os.getpid()), "OMP_NUM_THREADS": "1"}},
)
while not pathlib.Path({str(tmp_path / "run" / "last.ckpt")!r}).exists() and child.poll() is None:
    time.sleep(0.1)
print(child.pid, child.poll(), flush=True)
os._exit(0)
"""
    result = subprocess.run(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    child, ended = result.stdout.split()
    assert ended == "None"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(int(child), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(int(child), signal.SIGKILL)
    pytest.fail("the training went on")


def test_a_finished_run_stays_as_it_is(tmp_path, capsys):
    settings = ["--config", str(write_settings(tmp_path, steps=6))]
    before = torch.load(checkpoint := fit(settings), weights_only=True)
    assert "going on" not in capsys.readouterr().err
    after = torch.load(fit(settings), weights_only=True)
    assert f"going on from {checkpoint}, after step 6\n" in capsys.readouterr().err
    same(before["state_dict"], after["state_dict"])
    assert after["global_step"] == 6


def test_accumulated_gradients_resume_too(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=12)), "--trainer.accumulate_grad_batches", "3"]
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)

    step = GeoCLIPTraining.training_step

    def stops_at_7(self, batch, batch_idx):
        if self.global_step == 7:
            raise RuntimeError("stopped")
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeoCLIPTraining, "training_step", stops_at_7)
        with pytest.raises(RuntimeError, match="stopped"):
            fit([*settings, "--out", str(tmp_path / "parts")])
    assert step_of(tmp_path / "parts" / "last.ckpt") == 4
    parts = torch.load(fit([*settings, "--out", str(tmp_path / "parts")]), weights_only=True)
    same(whole["state_dict"], parts["state_dict"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model.width", "8"], "width 16, now width is 8"),
        (["--data.batch_size", "12"], "batch_size 24, now batch_size is 12"),
        (["--trainer.max_steps", "7"], "max_steps 6, now max_steps is 7"),
        (["--model.policy", "semivariogram"], "policy explained, now policy is semivariogram"),
    ],
)
def test_other_settings_do_not_continue_a_run(tmp_path, change, message):
    settings = ["--config", str(write_settings(tmp_path, steps=6))]
    fit(settings)
    with pytest.raises(ValueError, match=message):
        fit([*settings, *change])


def write_photos(folder, seed=0, **info):
    latlon = random_latlon(300, seed)
    with EmbeddingWriter(folder, 16, info={"backbone": None, **info}) as writer:
        writer.append(range(300), latlon, embeddings_of(latlon))
    return ["--data.train", str(folder)]


def test_other_data_do_not_continue_a_run(tmp_path):
    """Three hundred photos elsewhere, or embedded otherwise; the same ones in another folder do."""
    settings = ["--config", str(write_settings(tmp_path, steps=3))]
    checkpoint = fit(settings)
    words = r"holds a run on other photos, or on the same ones at other positions"
    with pytest.raises(ValueError, match=words):
        fit([*settings, *write_photos(tmp_path / "elsewhere", seed=1)])
    words = r"holds a run with embedding_info.backbone None, now embedding_info.backbone is ViT-B-32"
    with pytest.raises(ValueError, match=words):
        fit([*settings, *write_photos(tmp_path / "otherwise", backbone="ViT-B-32")])
    with pytest.raises(ValueError, match=r"embedding_info.split None, now embedding_info.split is train"):
        fit([*settings, *write_photos(tmp_path / "split", split="train")])
    fit([*settings, *write_photos(tmp_path / "moved")])
    # a checkpoint of a version that noted neither goes on
    saved = torch.load(checkpoint, weights_only=True)
    del saved["given_variogram"], saved["refit_tried"]
    del saved["datamodule_hyper_parameters"]["latlon_checksum"]
    torch.save(saved, checkpoint)
    fit(settings)


@pytest.mark.parametrize("refit_every", ["0", "2"])
def test_another_semivariogram_does_not_continue_a_run(tmp_path, refit_every):
    settings = ["--config", str(write_settings(tmp_path, steps=6)), "--model.refit_every", refit_every]
    fit(settings)
    fit(settings)  # what was refitted is not what was given
    VariogramModel("exponential", 0.1, 0.8, 900.0).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"holds a run with variogram .*1500\.0.*now variogram is .*900\.0"):
        fit([*settings, "--model.variogram", str(tmp_path / "other.json")])


def test_a_damaged_checkpoint_is_named(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=6))]
    checkpoint = fit(settings)
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint"):
        fit(settings)


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    """A write that fails half-way, as on a full disk, leaves the checkpoint that was there."""
    file = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, file)

    def full_disk(checkpoint, target):
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_output_folder_may_be_the_current_one(tmp_path, monkeypatch):
    settings = write_settings(tmp_path, steps=3)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fit(["--config", str(settings), "--out", "."])
    assert step_of(tmp_path / "here" / "last.ckpt") == 3


def test_the_trainer_uses_it(tmp_path, monkeypatch):
    written = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO,
        "save_checkpoint",
        lambda self, checkpoint, path, storage_options=None: (
            written.append(checkpoint["global_step"]),
            save(self, checkpoint, path),
        ),
    )
    fit(["--config", str(write_settings(tmp_path, steps=9))])
    assert written == [4, 8, 9]
    assert not list(tmp_path.glob("run/.*"))
