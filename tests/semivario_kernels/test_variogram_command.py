"""`python -m semivario_kernels variogram`, in this process where that is enough, killed where it is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from places import random_latlon

from geoclip.embedding_store import EmbeddingWriter
from semivario_kernels import (
    EmpiricalVariogram,
    VariogramModel,
    binned_semivariance,
    even_edges_km,
    fit_variogram,
    log_edges_km,
    quantile_edges_km,
)
from semivario_kernels.command import ANTIPODE_KM, main

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
ARRAYS = ("edges_km", "lag_km", "counts", "gamma", "std", "stderr")


def field(n, dim=24, seed=0):
    """Embeddings alike within about 1,000 km, and their places."""
    latlon = random_latlon(n, seed)
    generator = torch.Generator().manual_seed(seed)
    radians = torch.deg2rad(latlon).float()
    frequency = 6 * torch.randn(2, dim, generator=generator)
    noise = 0.5 * torch.randn(n, dim, generator=generator)
    return (torch.cos(radians @ frequency) + noise).numpy(), latlon.numpy()


@pytest.fixture
def files(tmp_path):
    embeddings, latlon = field(900)
    np.save(tmp_path / "v.npy", embeddings)
    np.save(tmp_path / "p.npy", latlon)
    return tmp_path


def run(folder, *options, places=True):
    arguments = ["variogram", folder / "v.npy", *[folder / "p.npy"] * places, "-o", folder / "out.json"]
    return main([str(part) for part in (*arguments, "--quiet", *options)])


def assert_same(got, wanted):
    np.testing.assert_array_equal(got.counts, wanted.counts)
    for name in ARRAYS:  # float64 sums of a run in parts may differ in the last bit
        np.testing.assert_allclose(getattr(got, name), getattr(wanted, name), rtol=1e-13, err_msg=name)


def test_writes_measurement_model_and_picture(files, capsys):
    assert run(files, "--bins", "20", "--first-km", "100", "--kind", "exponential") == 0
    wanted = binned_semivariance(*field(900), edges_km=log_edges_km(100, ANTIPODE_KM, 20))
    assert_same(EmpiricalVariogram.load(files / "out.npz"), wanted)
    model = VariogramModel.load(files / "out.json")
    assert model == fit_variogram(wanted, "exponential", metric="chord").model
    assert (files / "out.png").read_bytes().startswith(PNG)
    names = {file.name for file in files.iterdir()}
    assert names == {"out.json", "out.npz", "out.png", "p.npy", "v.npy"}
    printed = capsys.readouterr()
    assert f"{wanted.counts.sum():,} pairs of 900 places" in printed.out
    assert f"nugget {model.nugget:.3f}" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("options", "edges_km"),
    [
        (["--edges", "even", "--bins", "7"], even_edges_km(ANTIPODE_KM, 7)),
        (["--edges", "even", "--bins", "7", "--last-km", "9000"], even_edges_km(9000, 7)),
        (["--edges", "0,250,2000.5,12e3"], [0, 250, 2000.5, 12000]),
        (["--edges", "log", "--first-km", "30", "--max-lag-km", "4000"], log_edges_km(30, 4000, 30)),
        (
            ["--edges", "quantile", "--bins", "6", "--seed", "3"],
            quantile_edges_km(field(900)[1], 6, max_lag_km=ANTIPODE_KM, seed=3),
        ),
    ],
)
def test_bin_edges(options, edges_km, files):
    assert run(files, "--kind", "none", *options) == 0
    got = EmpiricalVariogram.load(files / "out.npz")
    np.testing.assert_array_equal(got.edges_km, edges_km)
    assert not (files / "out.json").exists()
    assert (files / "out.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "cressie-hawkins"},
        {"estimator": "dowd", "backend": "tiled"},
        {"max_lag_km": 3000.0},
        {"max_pairs": 5e4, "seed": 5},
    ],
    ids=str,
)
def test_options_of_the_estimate(options, files):
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    edges = [0, 300, 1000, 3000, 12000]
    assert run(files, "--kind", "none", "--edges", ",".join(map(str, edges)), *words) == 0
    wanted = binned_semivariance(*field(900), edges_km=edges, **{"seed": 0, **options})
    got = EmpiricalVariogram.load(files / "out.npz")
    assert_same(got, wanted)
    assert got.estimator == wanted.estimator
    assert got.sampled == wanted.sampled == ("max_pairs" in options)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--kind", "exponential", "--weights", "counts"], {"kind": "exponential", "weights": "counts"}),
        (
            ["--kind", "spherical", "--no-nugget", "--metric", "arc"],
            {"kind": "spherical", "nugget": False, "metric": "arc"},
        ),
        (["--kind", "gaussian"], {"kind": "gaussian"}),
    ],
)
def test_options_of_the_fit(words, options, files):
    assert run(files, "--first-km", "100", "--bins", "16", *words) == 0
    options = {"metric": "chord", **options}
    wanted = fit_variogram(EmpiricalVariogram.load(files / "out.npz"), **options)
    assert VariogramModel.load(files / "out.json") == wanted.model


def test_a_sum_of_kinds(files):
    assert run(files, "--edges", "quantile", "--bins", "9", "--kind", "exponential+spherical") == 0
    assert VariogramModel.load(files / "out.json").kind == ("exponential", "spherical")


def test_threads(files):
    before = torch.get_num_threads()
    try:
        assert run(files, "--threads", "2") == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_store_and_a_parquet_file_hold_their_own_places(files):
    embeddings, latlon = field(900)
    embeddings = embeddings.astype(np.float16)
    with EmbeddingWriter(files / "store", 24, rows_per_shard=250) as writer:
        writer.append(range(900), latlon, embeddings)
    columns = {"lat": latlon[:, 0], "lon": latlon[:, 1], "vector": list(embeddings.astype(np.float32))}
    pq.write_table(pa.table(columns), files / "photos.parquet")
    wanted = binned_semivariance(embeddings, latlon, edges_km=log_edges_km(1, ANTIPODE_KM, 30))
    for source in ("store", "photos.parquet"):
        assert main(["variogram", str(files / source), "-o", str(files / "new" / "a.b"), "--quiet"]) == 0
        got = EmpiricalVariogram.load(files / "new" / "a.b.npz")
        np.testing.assert_array_equal(got.counts, wanted.counts)
        np.testing.assert_allclose(got.gamma, wanted.gamma, rtol=1e-6)
    names = sorted(file.name for file in (files / "new").iterdir())
    assert names == ["a.b.json", "a.b.npz", "a.b.png"]


def test_groups_have_semivariograms_of_their_own(files, capsys):
    embeddings, latlon = field(900)
    half = np.where(latlon[:, 0] > 10, "north, and more", "south")
    half[:5] = "few"
    rows = [f'{a!r},{b!r},"{name}"' for (a, b), name in zip(latlon.tolist(), half, strict=True)]
    (files / "p.csv").write_text("\n".join(["lat,lon,half", *rows]))
    edges = [0, 1000, 2000, 4000, 6000, 8000, 20016]
    words = ["--edges", ",".join(map(str, edges)), "--kind", "exponential", "--groups", "half"]
    arguments = [files / "v.npy", files / "p.csv", "-o", files / "out", "--quiet", *words]
    assert main(["variogram", *map(str, arguments)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "groups left out" in line
    assert "few (5 places)" in line
    table = json.loads((files / "out.groups.json").read_text())
    assert table["column"] == "half"
    assert list(table["groups"]) == ["north, and more", "south"]
    for name, group in table["groups"].items():
        inside = half == name
        wanted = binned_semivariance(embeddings[inside], latlon[inside], edges_km=edges)
        assert group["counts"] == wanted.counts.tolist()
        np.testing.assert_allclose(np.array(group["gamma"], float), wanted.gamma, rtol=1e-12)
        model = VariogramModel.from_dict(group["model"])
        assert model == fit_variogram(wanted, "exponential", metric="chord").model
    assert (files / "out.groups.png").read_bytes().startswith(PNG)
    assert EmpiricalVariogram.load(files / "out.npz").counts.sum() == 900 * 899 // 2
    words[-1] = "continent"
    assert main(["variogram", *map(str, [*arguments[:-1], "continent"])]) == 2
    assert "no column continent; it holds lat, lon, half" in capsys.readouterr().err


def test_what_was_measured_outlives_a_model_that_cannot_be_fitted(files, capsys):
    assert run(files, "--edges", "0,1000,20016") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m semivario_kernels: empirical: a stable model has 4 parameters")
    assert EmpiricalVariogram.load(files / "out.npz").counts.sum() == 900 * 899 // 2
    assert (files / "out.png").read_bytes().startswith(PNG)
    assert not (files / "out.json").exists()


def test_warnings_take_one_line_each(files, capsys):
    np.save(files / "v.npy", np.random.default_rng(0).normal(size=(900, 24)))  # no structure at all
    assert run(files, "--first-km", "100") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m semivario_kernels: warning: no resolvable range: ")
    with pytest.warns(UserWarning, match=r"out\.json: no resolvable range: "):  # whoever trains with it
        VariogramModel.load(files / "out.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edges", "wide"], "--edges: wanted log, even, quantile or rising numbers .*, got 'wide'"),
        (["--edges", "0,5,5"], "edges_km: wanted finite edges in km, rising from 0 or above"),
        (["--edges", "5"], "edges_km: wanted shape"),
        (["--bins", "1"], "bins: wanted a whole number of 2 or more, got 1"),
        (["--first-km", "-1"], "first_km: wanted a finite number"),
        (["--last-km", "0.5"], "last_km: wanted a finite number"),
        (["--max-lag-km", "nan"], "km: wanted a finite number"),
        (["--max-pairs", "0"], "max_pairs: wanted a finite number"),
        (["--threads", "0"], "--threads: wanted at least 1, got 0"),
        (["--kind", "cubic"], "--kind: wanted stable, .*, got 'cubic'"),
        (["--kind", "stable+"], "--kind: wanted stable, .*, got ''"),
        (["--backend", "abacus"], "backend: wanted one of .*, got 'abacus'"),
        (["-o", "/dev/null/x"], "--out: /dev/null is no folder"),
        (["--edges", "0,0.001"], "edges_km: no pair lies between 0 and 0.001 km; 900 places were given"),
    ],
)
def test_bad_options_end_in_one_line(options, message, files, capsys):
    assert run(files, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m semivario_kernels: ")
    assert_matches(message, line)
    assert not list(files.glob("out*"))


def assert_matches(message, line):
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["correlogram"], "invalid choice: 'correlogram'"),
        (["variogram", "v.npy"], "required: -o/--out"),
        (["variogram", "v.npy", "-o", "x", "--bins", "few"], "--bins: invalid int value: 'few'"),
        (["variogram", "v.npy", "-o", "x", "--max-pairs", "2.5"], "--max-pairs: invalid whole number value"),
        (["variogram", "v.npy", "-o", "x", "--max-pairs", "inf"], "--max-pairs: invalid whole number value"),
        (["variogram", "v.npy", "-o", "x", "--estimator", "mean"], "--estimator: invalid choice: 'mean'"),
        (["variogram", "v.npy", "-o", "x", "--weights", "none"], "--weights: invalid choice: 'none'"),
    ],
)
def test_bad_command_lines_end_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_bad_files_end_in_one_line(files, capsys):
    def fails(message, *arguments):
        assert main(["variogram", *map(str, arguments), "-o", str(files / "out"), "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert_matches(f"^python -m semivario_kernels: .*{message}", line)
        assert not list(files.glob("out*"))

    v, p, bad = files / "v.npy", files / "p.npy", files / "bad.npy"
    fails(r"x\.npy: no such file", files / "x.npy", p)
    fails(r"x\.csv: no such file", v, files / "x.csv")
    fails(r"LATLON: wanted a file of positions, as .*v\.npy holds none", v)
    fails(r"wanted \(N, 2\) latitudes and longitudes", v, v)
    np.save(bad, field(800)[1])
    fails(r"bad\.npy: 800 positions for 900 embeddings", v, bad)
    np.save(bad, field(900)[1][:, ::-1])
    fails(r"latlon: wanted finite \(latitude, longitude\) in degrees with latitude within ±90", v, bad)
    np.save(bad, np.zeros((900, 24), np.float32))
    fails("embeddings: wanted at least 2 rows that are not all zero, got 0", bad, p)
    np.save(bad, np.full((900, 24), np.nan, np.float32))
    fails(r"bad\.npy: row 0 holds NaN or infinite values", bad, p)
    (files / "folder").mkdir()
    fails(r"folder: wanted a folder of \.npy shards, found none", files / "folder", p)


def test_out_must_not_be_a_folder(files, capsys):
    (files / "out").mkdir()
    assert run(files) == 2
    assert "is a folder; wanted a name for files, such as" in capsys.readouterr().err


# --- interrupts, in processes of their own -----------------------------------------------------------------

# as the command, but with a checkpoint after every row block instead of every few seconds
EAGER = """
import sys
import semivario_kernels.binned_run as binned_run
from semivario_kernels.command import main
binned_run.CHECKPOINT_SECONDS = 0.0
sys.exit(main(sys.argv[1:]))
"""
EDGES = "0,100,1000,5000,20016"


def start(files):
    command = ["variogram", files / "v.npy", files / "p.npy", "-o", files / "out", "--kind", "none"]
    command += ["--backend", "tiled", "--edges", EDGES, "--quiet"]
    return subprocess.Popen(
        [sys.executable, "-c", EAGER, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with SIGINT ignored, and the tests may be one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_checkpoint(process, file, later_than=0):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.stat().st_mtime_ns > later_than:
            return
        time.sleep(0.002)
    pytest.fail(f"no checkpoint: {process.stderr.read()}")


def test_killed_and_interrupted_it_goes_on_where_it_was(files, capsys):
    embeddings, latlon = field(4_000)
    np.save(files / "v.npy", embeddings)
    np.save(files / "p.npy", latlon)
    checkpoint = files / "out.checkpoint"
    written = 0
    for blow in (signal.SIGKILL, signal.SIGINT):
        process = start(files)
        wait_for_checkpoint(process, checkpoint, written)
        process.send_signal(blow)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if blow == signal.SIGKILL else 130), errors
        assert not (files / "out.npz").exists()
        assert checkpoint.exists()
        written = checkpoint.stat().st_mtime_ns
        if blow == signal.SIGINT:
            assert errors.splitlines() == [
                f"python -m semivario_kernels: going on from {checkpoint}",
                "python -m semivario_kernels: interrupted; the same command goes on where it was",
            ]
    saved = checkpoint.read_bytes()

    options = ["--kind", "none", "--backend", "tiled", "--edges", EDGES]
    assert run(files, *options, "--seed", "1") == 2  # another seed: another run
    assert "belongs to other places, embeddings or options" in capsys.readouterr().err
    assert checkpoint.read_bytes() == saved

    assert run(files, *options) == 0
    assert capsys.readouterr().err == f"python -m semivario_kernels: going on from {checkpoint}\n"
    assert not checkpoint.exists()
    resumed = EmpiricalVariogram.load(files / "out.npz")
    assert resumed.counts.sum() == 4_000 * 3_999 // 2

    # what the checkpoint holds is not measured again: a pair too many in it shows in the result
    checkpoint.write_bytes(saved)
    with np.load(checkpoint) as archive:
        values = dict(archive)
    assert int(values["block"]) >= 2  # one at least of each process
    values["partial_sums"][0, 0, 1, 0] += 1
    with checkpoint.open("wb") as file:
        np.savez(file, **values)
    assert run(files, *options) == 0
    assert EmpiricalVariogram.load(files / "out.npz").counts[0] == resumed.counts[0] + 1

    checkpoint.write_bytes(saved)
    assert run(files, *options, "--restart") == 0
    assert_same(EmpiricalVariogram.load(files / "out.npz"), resumed)


def test_processes_of_torchrun_share_the_pairs(files):
    embeddings = np.load(files / "v.npy")
    (files / "shards").mkdir()
    for k, part in enumerate(np.array_split(embeddings, 3)):
        np.save(files / "shards" / f"v-{k}.npy", part)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = ["-m", "semivario_kernels", "variogram", "shards", "p.npy", "-o", "out/two", "--bins", "20"]
    done = subprocess.run(
        [*torchrun, *command, "--first-km", "100", "--kind", "exponential", "--quiet"],
        cwd=files,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wanted = binned_semivariance(*field(900), edges_km=log_edges_km(100, ANTIPODE_KM, 20))
    got = EmpiricalVariogram.load(files / "out" / "two.npz")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    fit = fit_variogram(wanted, "exponential", metric="chord")
    assert VariogramModel.load(files / "out" / "two.json") == fit.model
    assert {file.name for file in (files / "out").iterdir()} == {"two.json", "two.npz", "two.png"}
    assert done.stdout.count("pairs of 900 places") == 1
