"""How a semivariogram is measured: order, tiles, pruning, samples, errors, checkpoints."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from places import SPECIAL_PLACES, embeddings_of, random_latlon
from test_semivariance import check_against_pairs, pairs_of

from semivario_kernels import (
    available_backends,
    binned_run,
    binned_semivariance,
    even_edges_km,
    log_edges_km,
    quantile_edges_km,
    space_filling,
)
from semivario_kernels.backends import binned_native, binned_torch
from semivario_kernels.backends.bin_table import NEAR_EDGE, make_bin_table
from semivario_kernels.geometry import unit_vectors
from semivario_kernels.semivariance import squared_chord_edges

BACKENDS = available_backends("cpu")


def clustered_latlon(n, seed):
    """Towns of many sizes, on every longitude."""
    g = torch.Generator().manual_seed(seed)
    towns = random_latlon(40, seed)[torch.randint(40, (n,), generator=g)]
    spread = 10.0 ** (-3 * torch.rand(n, 1, generator=g, dtype=torch.float64))
    latlon = towns + spread * torch.randn(n, 2, generator=g, dtype=torch.float64)
    latlon[:, 0].clamp_(-90, 90)
    return latlon


@pytest.fixture(scope="module")
def towns():
    latlon = torch.cat([clustered_latlon(2700, 4), torch.tensor(SPECIAL_PLACES, dtype=torch.float64)])
    v = embeddings_of(latlon, dim=33)
    v[17] = 0
    return v.float(), latlon


@pytest.fixture(scope="module")
def town_pairs(towns):
    v, latlon = towns
    has_image = torch.arange(len(v)) != 17
    return pairs_of(v[has_image].double(), latlon[has_image])


EDGES = {
    "log": log_edges_km(0.01, 20100.0, 40),
    "even": even_edges_km(20100.0, 25),
    "fine": even_edges_km(20100.0, 3142),
    "uneven": np.array([3.0, 3.5, 1000.0, 1000.001, 1000.002, 20015.0, 30000.0, 40000.0]),
}


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_equals_all_pairs(towns, town_pairs, backend, edges):
    v, latlon = towns
    exact = backend == "reference"
    ours = binned_semivariance(v.double() if exact else v, latlon, edges_km=edges, backend=backend)
    check_against_pairs(ours, *town_pairs, edges, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_sets_equal_all_pairs(towns, backend):
    v, latlon = towns
    u, other = embeddings_of(latlon[500:1800], dim=33, seed=7).float(), latlon[500:1800]
    edges = log_edges_km(0.1, 3000.0, 14)  # pruned
    ours = binned_semivariance(v, latlon, other=u, other_latlon=other, edges_km=edges, backend=backend)
    has_image = torch.arange(len(v)) != 17
    pairs = pairs_of(v[has_image].double(), latlon[has_image], u.double(), other)
    check_against_pairs(ours, *pairs, edges, exact=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_tiles_are_left_out_and_nothing_is_missed(backend, monkeypatch):
    latlon = random_latlon(5000, 8)
    v = embeddings_of(latlon, dim=5).float()
    multiplied = []
    walk = binned_run.Walk
    monkeypatch.setattr(binned_run, "Walk", lambda *args: multiplied.append(walk(*args)) or multiplied[-1])
    edges = log_edges_km(30.0, 20100.0, 12)
    ours = binned_semivariance(v, latlon, edges_km=edges, max_lag_km=200.0, backend=backend)
    kept = edges[edges <= 200]
    np.testing.assert_array_equal(ours.edges_km, kept)
    check_against_pairs(ours, *pairs_of(v.double(), latlon), kept, exact=False)
    assert sum(multiplied[0].pairs) < 0.45 * len(v) ** 2 / 2


@pytest.mark.parametrize("max_lag_km", [None, 100.0])
def test_order_tiles_and_threads_change_nothing(towns, monkeypatch, max_lag_km):
    v, latlon = towns
    edges = log_edges_km(0.1, 20100.0, 40)

    def measure(order):
        return binned_semivariance(v[order], latlon[order], edges_km=edges, max_lag_km=max_lag_km)

    whole = measure(torch.arange(len(v)))
    shuffled = measure(torch.randperm(len(v), generator=torch.Generator().manual_seed(1)))
    for module in (binned_native.NativeBinning, binned_torch.TorchBinning):
        monkeypatch.setattr(module, "row_blocks", (128,))
        monkeypatch.setattr(module, "column_batch", 384)
    small = measure(torch.arange(len(v)))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        threaded = measure(torch.arange(len(v)))
    finally:
        torch.set_num_threads(threads)
    for other in (shuffled, small, threaded):
        np.testing.assert_array_equal(other.counts, whole.counts)
        assert other.duplicates == whole.duplicates
        np.testing.assert_allclose(other.lag_km, whole.lag_km, rtol=1e-9)
        np.testing.assert_allclose(other.gamma, whole.gamma, rtol=0, atol=1e-9)


def test_the_curve_passes_every_cell_once_from_neighbour_to_neighbour(monkeypatch):
    monkeypatch.setattr(space_filling, "LEVELS", 4)
    x, y = (t.reshape(-1) for t in torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))
    codes = space_filling._hilbert(x, y)
    order = codes.argsort()
    assert codes[order].tolist() == list(range(256))
    steps = (x[order].diff().abs() + y[order].diff().abs()).tolist()
    assert steps == [1] * 255


def test_places_along_the_curve_are_near():
    latlon = torch.cat([random_latlon(60_000, 1), torch.tensor(SPECIAL_PLACES, dtype=torch.float64)])
    unit = unit_vectors(latlon)
    codes = space_filling.curve_codes(unit)
    assert (codes >= 0).all()
    tiles = unit[codes.argsort()][: 468 * 128].reshape(468, 128, 3)
    radius = (tiles - tiles.mean(dim=1, keepdim=True)).norm(dim=2).amax(dim=1)
    # a disc of 1/468 of the sphere has a radius of 0.092
    assert radius.median() < 0.15
    assert (radius > 0.3).sum() <= 5  # where the curve leaves a face


def test_cells_of_the_bin_table_hold_their_edges():
    g = np.random.default_rng(0)
    for edges in EDGES.values():
        table = make_bin_table(squared_chord_edges(edges).numpy())
        h = np.concatenate([20015.1 * g.random(50_000), 10 ** g.uniform(-9, 4.3, 50_000)])
        h = np.concatenate([h, edges[edges < 20015] * (1 + 3e-7 * g.standard_normal((5, 1)))], axis=None)
        h = h[h < 20015.1]
        squared = 4 * np.sin(h / (2 * 6371.0088)) ** 2
        wanted = np.searchsorted(table.edges, squared, side="right")
        rounded = np.float32(h) + np.float32(table.offset)
        cell = (rounded.view(np.uint32).astype(np.int64) >> table.shift) - table.first_cell
        found = table.cells[np.clip(cell, 0, len(table.cells) - 1)]
        is_open = found >= NEAR_EDGE
        np.testing.assert_array_equal(found[~is_open], wanted[~is_open])
        assert (found[is_open] - NEAR_EDGE <= wanted[is_open]).all()
        assert len(table.cells) <= 2**16


def test_sample_is_bounded_repeatable_and_says_so(towns):
    edges = log_edges_km(1.0, 20100.0, 24)
    samples = [
        binned_semivariance(*towns, edges_km=edges, max_pairs=1_000_000, seed=seed) for seed in (3, 3, 4)
    ]
    np.testing.assert_array_equal(samples[0].gamma, samples[1].gamma)
    assert not np.array_equal(samples[0].gamma, samples[2].gamma)
    full = binned_semivariance(*towns, edges_km=edges)
    assert (full.sampled, full.seed) == (False, None)
    np.testing.assert_array_equal(full.fraction, 1)
    for sample, seed in zip(samples, (3, 3, 4), strict=True):
        assert (sample.sampled, sample.seed) == (True, seed)
        assert 100_000 < sample.counts.sum() <= 1_000_000
        # short lags are not starved: more of them is measured than of the long ones
        assert sample.fraction[0] > 2 * sample.fraction[-1]
        np.testing.assert_array_equal(sample.counts[sample.fraction == 1], full.counts[sample.fraction == 1])
        many = full.counts > 20_000
        np.testing.assert_allclose((sample.counts / sample.fraction)[many], full.counts[many], rtol=0.5)
    tiny = binned_semivariance(*towns, edges_km=edges, max_pairs=50)
    assert tiny.counts.sum() <= 50


def test_sample_is_unbiased_and_its_error_is_known():
    # white noise: the error of the mean comes from the places alone, and a sample differs from the next by it
    latlon = random_latlon(1500, 3)
    v = torch.randn(1500, 6, generator=torch.Generator().manual_seed(0))
    v[:, 0] += 2.0 * (latlon[:, 0] > 0)  # two hemispheres, so that the bins differ
    edges = even_edges_km(20100.0, 6)
    full = binned_semivariance(v, latlon, edges_km=edges)
    samples = [binned_semivariance(v, latlon, edges_km=edges, max_pairs=60_000, seed=s) for s in range(40)]
    gamma = np.array([sample.gamma for sample in samples])
    spread = gamma.std(axis=0, ddof=1)
    assert (np.abs(gamma.mean(axis=0) - full.gamma) < 4 * spread / np.sqrt(len(samples))).all()
    claimed = np.sqrt(np.mean([sample.stderr**2 for sample in samples], axis=0))
    assert (claimed > 0.75 * spread).all()
    assert (claimed < 3 * spread).all()


def test_stderr_is_that_of_new_places():
    # fields drawn again at new places scatter as the blocks say, which is far more than std/√counts
    edges = even_edges_km(20100.0, 5)
    gammas, claimed, naive = [], [], []
    for seed in range(60):
        latlon = random_latlon(600, 100 + seed)
        v = torch.randn(600, 4, generator=torch.Generator().manual_seed(seed)) + torch.tensor([1.0, 0, 0, 0])
        ours = binned_semivariance(v, latlon, edges_km=edges)
        gammas.append(ours.gamma)
        claimed.append(ours.stderr)
        naive.append(ours.std / np.sqrt(ours.counts))
    spread = np.std(gammas, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean(claimed, axis=0), spread, rtol=0.3)
    assert (spread > 2 * np.mean(naive, axis=0)).all()


def test_quantile_edges_hold_equally_many_pairs(towns):
    edges = quantile_edges_km(towns[1], 12, seed=1)
    assert edges[0] == 0
    ours = binned_semivariance(*towns, edges_km=edges)
    shares = ours.counts / ours.counts.sum()
    np.testing.assert_allclose(shares, 1 / 12, atol=0.004)
    assert quantile_edges_km(towns[1], 5, max_lag_km=30.0)[-1] == 30.0
    for arguments, message in (
        ((towns[1][:1], 5), "latlon: wanted at least 2 places, got 1"),
        ((towns[1], 0), "bins: wanted a whole number of 1 or more, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            quantile_edges_km(*arguments)
    with pytest.raises(ValueError, match="max_lag_km: none of 1000000 random pairs lies within"):
        quantile_edges_km(random_latlon(50, 0), 5, max_lag_km=1e-5)


def test_embeddings_that_are_not_finite_are_refused(towns):
    v = towns[0].clone()
    v[40, 3] = torch.nan
    with pytest.raises(ValueError, match="embeddings: wanted finite values, got NaN or infinity in row 40"):
        binned_semivariance(v, towns[1], edges_km=EDGES["even"])


def test_equal_embeddings_have_no_dissimilarity():
    latlon = random_latlon(200, 1)
    ours = binned_semivariance(torch.ones(200, 5), latlon, edges_km=EDGES["even"])
    np.testing.assert_allclose(ours.gamma[ours.counts > 0], 0, atol=3e-7)


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("max_pairs", [None, 600_000])
@pytest.mark.parametrize("estimator", ["matheron", "cressie-hawkins", "dowd"])
def test_an_interrupted_run_goes_on(towns, tmp_path, monkeypatch, estimator, max_pairs):
    monkeypatch.setattr(binned_run, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(binned_native.NativeBinning, "row_blocks", (256,))
    path = tmp_path / "run.npz"
    options = {"edges_km": EDGES["even"], "estimator": estimator, "max_pairs": max_pairs, "seed": 2}
    whole = binned_semivariance(*towns, **options)
    run_block, walked = binned_run.Walk.run_block, []

    def interrupting(self, number):
        if len(walked) in (3, 5):
            walked.append(None)
            raise Stop
        walked.append(number)
        run_block(self, number)

    monkeypatch.setattr(binned_run.Walk, "run_block", interrupting)
    for _ in range(2):
        with pytest.raises(Stop):
            binned_semivariance(*towns, **options, checkpoint=path)
        assert path.exists()
    done = len(walked)
    if max_pairs is None:  # a version that would choose other blocks goes on with those of the checkpoint
        monkeypatch.setattr(binned_native.NativeBinning, "row_blocks", (128,))
    resumed = binned_semivariance(*towns, **options, checkpoint=path)
    assert not path.exists()
    blocks = len(walked)
    monkeypatch.setattr(binned_native.NativeBinning, "row_blocks", (256,))
    walked.clear()
    monkeypatch.setattr(binned_run.Walk, "run_block", lambda self, n: walked.append(n) or run_block(self, n))
    binned_semivariance(*towns, **options)
    assert blocks - 2 == len(walked)  # nothing was walked twice
    assert done < blocks
    for name in ("counts", "gamma", "std", "lag_km", "stderr"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_a_checkpoint_of_another_run_is_refused(towns, tmp_path, monkeypatch):
    monkeypatch.setattr(binned_run, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "run.npz"
    monkeypatch.setattr(binned_native.NativeBinning, "row_blocks", (256,))
    run_block = binned_run.Walk.run_block

    def interrupting(self, number):
        if number == 1:
            raise Stop
        run_block(self, number)

    monkeypatch.setattr(binned_run.Walk, "run_block", interrupting)
    with pytest.raises(Stop):
        binned_semivariance(*towns, edges_km=EDGES["even"], checkpoint=path)
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.npz belongs to other places"):
        binned_semivariance(*towns, edges_km=EDGES["log"], checkpoint=path)
    for other in (b"nothing", path.read_bytes()[:-100]):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"checkpoint: .*run\.npz does not hold a run"):
            binned_semivariance(*towns, edges_km=EDGES["even"], checkpoint=path)


KILLED = """
import sys, time, numpy as np
from semivario_kernels import binned_run, binned_semivariance
from semivario_kernels.backends import binned_native, binned_torch
binned_run.CHECKPOINT_SECONDS = 0.0
binned_native.NativeBinning.row_blocks = binned_torch.TorchBinning.row_blocks = (128,)
run_block = binned_run.Walk.run_block
def slow(self, number):
    time.sleep(0.05)
    run_block(self, number)
if sys.argv[2] == "slow":
    binned_run.Walk.run_block = slow
data = np.load(sys.argv[1] + "/data.npz")
edges, checkpoint = np.linspace(0, 20100, 9), sys.argv[1] + "/run.npz"
ours = binned_semivariance(data["v"], data["p"], edges_km=edges, checkpoint=checkpoint)
ours.save(sys.argv[1] + "/result.npz")
"""


def test_a_killed_process_goes_on(towns, tmp_path):
    np.savez(tmp_path / "data.npz", v=towns[0].numpy(), p=towns[1].numpy())
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "slow"], env=environment) as process:
        while not (tmp_path / "run.npz").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "result.npz").exists()
    subprocess.run([*command, "fast"], env=environment, check=True)
    result = np.load(tmp_path / "result.npz")
    whole = binned_semivariance(*towns, edges_km=np.linspace(0, 20100, 9))
    np.testing.assert_array_equal(result["counts"], whole.counts)
    np.testing.assert_allclose(result["gamma"], whole.gamma, rtol=1e-9)
