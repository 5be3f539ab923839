"""Blocks chosen by measurement: the choice, its file, and what other blocks compute."""

import json
from dataclasses import replace

import pytest
import torch
from test_loss import MODEL, problem

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.runtime.errors import OutOfResources

from semivario_kernels import NegativePolicy, semivariogram_info_nce
from semivario_kernels.backends.triton import autotune, fused_driver
from semivario_kernels.backends.triton.autotune import Choices, candidates, choices_file
from semivario_kernels.backends.triton.configurations import FusedBlocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = 3e-6 if DEVICE == "cpu" else 3e-5  # as in test_triton_loss.py
TABLE = FusedBlocks(32, 32, 32, 4, 2, 32, 1)


class Clock:
    """Times a launch by the rows it is given: what is not known does not fit."""

    def __init__(self, seconds):
        self.seconds, self.launched = seconds, []

    def launch(self, blocks):
        self.launched.append(blocks)
        if blocks not in self.seconds:
            raise OutOfResources(1, 0, "shared memory")
        return self.seconds[blocks]

    def __call__(self, launch):
        return launch()


def test_candidates_begin_with_the_table_and_need_no_more():
    found = candidates(TABLE)
    assert found[0] == TABLE
    assert len(set(found)) == len(found) == 6
    for blocks in found:
        assert all(getattr(blocks, side) in (16, 32) for side in ("own", "other", "k", "dims"))
    sums = candidates(FusedBlocks(64, 16, 16, 8, 3))
    assert sums == [
        FusedBlocks(64, 16, 16, 8, 3),
        FusedBlocks(32, 16, 16, 8, 3),
        FusedBlocks(64, 16, 16, 8, 4),
    ]


def test_the_fastest_is_taken_and_kept_in_memory_and_in_a_file(tmp_path):
    file = tmp_path / "cache" / "choices.json"
    first, second, *_ = candidates(TABLE)
    clock = Clock({first: 2.0, second: 1.0})
    choices = Choices(file, clock)
    assert choices.fastest("a", candidates(TABLE), clock.launch, may_time=True) == second
    assert clock.launched == candidates(TABLE)
    assert choices.fastest("a", candidates(TABLE), clock.launch, may_time=False) == second
    assert choices.fastest("b", candidates(TABLE), Clock({first: 1.0}).launch, may_time=True) == first
    again = Choices(file, clock)
    assert again.fastest("a", candidates(TABLE), clock.launch, may_time=True) == second
    assert again.fastest("b", candidates(TABLE), clock.launch, may_time=True) == first
    assert len(clock.launched) == 6
    assert [path.name for path in file.parent.iterdir()] == ["choices.json"]


def test_under_capture_nothing_is_timed(tmp_path):
    clock = Clock({})
    choices = Choices(tmp_path / "choices.json", clock)
    assert choices.fastest("a", candidates(TABLE), clock.launch, may_time=False) == TABLE
    assert clock.launched == []
    assert not (tmp_path / "choices.json").exists()


def test_where_nothing_fits_the_table_decides(tmp_path):
    clock = Clock({})
    assert Choices(tmp_path / "c.json", clock).fastest("a", [TABLE], clock.launch, may_time=True) == TABLE


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"a": {"own": 7}}), json.dumps({"a": None})])
def test_a_spoilt_file_is_measured_anew(tmp_path, text):
    file = tmp_path / "choices.json"
    file.write_text(text)
    clock = Clock({TABLE: 1.0})
    assert Choices(file, clock).fastest("a", [TABLE], clock.launch, may_time=True) == TABLE
    assert clock.launched == [TABLE]
    assert Choices(file, clock).fastest("a", [TABLE], clock.launch, may_time=True) == TABLE
    assert clock.launched == [TABLE]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    clock = Clock({TABLE: 1.0})
    choices = Choices(tmp_path / "file" / "choices.json", clock)
    assert choices.fastest("a", [TABLE], clock.launch, may_time=True) == TABLE


def test_another_gpu_triton_or_source_has_another_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {choices_file("H200"), choices_file("A100")}
    monkeypatch.setattr(triton, "__version__", "0.0")
    files.add(choices_file("H200"))
    (tmp_path / "autotune.py").write_text("another source")
    monkeypatch.setattr(autotune, "__file__", str(tmp_path / "autotune.py"))
    files.add(choices_file("H200"))
    assert len(files) == 4
    assert {file.parent for file in files} == {tmp_path / "semivario-kernels"}


def test_off_unless_asked_for_and_on_gpus_only(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.delenv("SEMIVARIO_AUTOTUNE", raising=False)
    assert not autotune.autotunes(gpu)
    monkeypatch.setenv("SEMIVARIO_AUTOTUNE", "1")
    assert autotune.autotunes(gpu)
    assert not autotune.autotunes(cpu)


def losses_and_gradients(backend):
    p = {k: t.detach().to(DEVICE, torch.float32) for k, t in problem(n=21, m=50).items()}
    if backend == "reference":
        p = {k: t.double() for k, t in p.items()}
    leaves = [p[name].requires_grad_() for name in ("x", "y", "logit_scale")]
    options = {"variogram": MODEL, "policy": NegativePolicy.rectify(0.4, 3.0, 5.0), "reduction": "none"}
    workspace = {"workspace_mb": 1} if backend == "triton" else {}
    losses = semivariogram_info_nce(**p, **options, backend=backend, **workspace)
    upstream = torch.randn(losses.shape, generator=torch.Generator().manual_seed(8)).to(losses)
    return losses.detach(), *torch.autograd.grad(losses, leaves, upstream)


def assert_equals_reference():
    for ours, exactly in zip(losses_and_gradients("triton"), losses_and_gradients("reference"), strict=True):
        assert (ours.double() - exactly).abs().max() <= TOLERANCE * exactly.abs().max()


@pytest.fixture
def tuned(monkeypatch):
    """Blocks from `TABLE`, chosen by what the caller puts in place of `fastest_blocks`."""
    monkeypatch.setattr(fused_driver, "autotunes", lambda device: True)
    sums = replace(TABLE, dims=0, parts=0)
    monkeypatch.setattr(fused_driver, "fused_blocks", lambda name, *_: sums if "sums" in name else TABLE)
    return lambda chosen: monkeypatch.setattr(fused_driver, "fastest_blocks", chosen)


@pytest.mark.parametrize("place", range(len(candidates(TABLE)) - 1))
def test_every_candidate_computes_the_same(tuned, place):
    tuned(lambda key, blocks, launch, device: candidates(blocks)[place])
    assert_equals_reference()


def test_the_calls_of_a_loss_are_timed_and_then_made_with_the_choice(tuned, tmp_path):
    keys = []

    def chosen(key, blocks, launch, device):
        results = []
        choices = Choices(tmp_path / "choices.json", lambda call: results.append(call()) or -len(results))
        best = choices.fastest(key, candidates(blocks)[:2], launch, may_time=True)
        assert best == candidates(blocks)[1]  # on this clock the last is the fastest
        assert len(results) == 2
        keys.append(key)
        return best

    tuned(chosen)
    assert_equals_reference()
    assert len(set(keys)) == len(keys) == 3  # sums, ∂x with ∂s, ∂y


@pytest.mark.skipif(DEVICE == "cpu", reason="timing kernels wants a GPU")
def test_on_a_gpu_the_choices_of_a_loss_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMIVARIO_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune._choices.cache_clear()
    assert_equals_reference()
    (file,) = (tmp_path / "semivario-kernels").iterdir()
    assert len(json.loads(file.read_text())) == 3
    monkeypatch.setattr(triton.testing, "do_bench", None)
    autotune._choices.cache_clear()
    assert_equals_reference()
    autotune._choices.cache_clear()
