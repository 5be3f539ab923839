import shutil

import numpy as np
import pytest

from geoclip.cli import main
from geoclip.embedding_store import EmbeddingStore, EmbeddingWriter
from geoclip.measure import measure_variogram
from semivario_kernels import EmpiricalVariogram, VariogramModel, binned_semivariance, log_edges_km

from .rendered_photos import random_latlon
from .small_world import embeddings_of

EDGES_KM = log_edges_km(500, 20_000, 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """900 rows in four shards, the last one short."""
    latlon = random_latlon(900)
    folder = tmp_path_factory.mktemp("world") / "train"
    with EmbeddingWriter(folder, 16, info={"split": "train"}, rows_per_shard=256) as writer:
        writer.append(range(900), latlon, embeddings_of(latlon))
    return EmbeddingStore.open(folder)


def brute_force(store):
    """Mean 1 − cos of all pairs per bin, in float64."""
    vectors = store.all().astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    latitude, longitude = np.radians(store.latlon).T
    place = np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)]
    )
    i, j = np.triu_indices(len(store), 1)
    km = 2 * 6371.0088 * np.arcsin(np.linalg.norm(place[:, i] - place[:, j], axis=0) / 2)
    bins = np.digitize(km, EDGES_KM) - 1
    inside = (bins >= 0) & (bins < len(EDGES_KM) - 1)
    d = 1 - (vectors[i] * vectors[j]).sum(axis=1)
    counts = np.bincount(bins[inside], minlength=len(EDGES_KM) - 1)
    return counts, np.bincount(bins[inside], d[inside], len(EDGES_KM) - 1) / counts


def test_all_pairs_straight_from_the_shards(store, tmp_path):
    fit = measure_variogram(store, tmp_path / "v.json", edges_km=EDGES_KM, kind="exponential", progress=False)
    counts, gamma = brute_force(store)
    measured = EmpiricalVariogram.load(tmp_path / "v.npz")
    assert not measured.sampled
    np.testing.assert_array_equal(measured.counts, counts)
    np.testing.assert_allclose(measured.gamma, gamma, rtol=2e-6)
    assert VariogramModel.load(tmp_path / "v.json") == fit.model
    assert {file.name for file in tmp_path.iterdir()} == {"v.json", "v.npz", "v.png"}


def test_samples_and_lags(store, tmp_path):
    measure = {"edges_km": EDGES_KM, "kind": "exponential", "progress": False}
    _, gamma = brute_force(store)
    sampled = measure_variogram(store, tmp_path / "v.json", max_pairs=60_000, **measure).empirical
    assert sampled.sampled
    assert sampled.counts.sum() < 100_000
    np.testing.assert_allclose(sampled.gamma, gamma, rtol=0.1, atol=0.02)
    near = measure_variogram(store, tmp_path / "v.json", max_lag_km=EDGES_KM[6], **measure).empirical
    np.testing.assert_allclose(near.gamma, gamma[:6], rtol=2e-6)
    some = measure_variogram(store, tmp_path / "v.json", places=300, seed=4, **measure).empirical
    rows = np.sort(np.random.default_rng(4).permutation(900)[:300])
    expected = binned_semivariance(store.read(rows), store.latlon[rows], edges_km=EDGES_KM)
    np.testing.assert_array_equal(some.counts, expected.counts)


def test_the_command_refuses_test_photos_and_says_what_it_took(store, tmp_path, capsys):
    options = [
        "--first-km",
        "500",
        "--bins",
        "12",
        "--kind",
        "exponential",
        "--out",
        str(tmp_path / "v.json"),
    ]
    assert main(["variogram", str(store.path), *options, "--max-pairs", "all"]) == 0
    assert f"{900 * 899 // 2:,} pairs of {store.path}, taken as training data" in capsys.readouterr().out
    assert main(["variogram", str(store.path), *options, "--max-pairs", "5e4"]) == 0
    assert "a sample of " in capsys.readouterr().out
    (tmp_path / "v.checkpoint").write_bytes(b"of another run")
    assert main(["variogram", str(store.path), *options]) == 2
    assert main(["variogram", str(store.path), *options, "--restart"]) == 0
    test = tmp_path / "test"
    shutil.copytree(store.path, test)
    meta = (test / "meta.json").read_text()
    (test / "meta.json").write_text(meta.replace('"split": "train"', '"split": "test"'))
    capsys.readouterr()
    assert main(["variogram", str(test), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds the test split: a semivariogram is measured on training data only" in line
    for bad in ("0", "1.5", "many"):
        with pytest.raises(SystemExit):
            main(["variogram", str(store.path), *options, "--max-pairs", bad])


@pytest.mark.parametrize("suffix", [".npz", ".png", ".checkpoint"])
def test_the_model_does_not_replace_the_files_beside_it(store, tmp_path, capsys, suffix):
    out = tmp_path / "new" / f"v{suffix}"
    assert main(["variogram", str(store.path), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"out: {out}: .npz, .png, .checkpoint of this name are files of their own" in line
    assert not out.parent.exists()
