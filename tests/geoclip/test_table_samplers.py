"""The samplers of `geoclip fit` that draw from a table of photos that belong together."""

import numpy as np
import pyarrow.csv
import pytest
import torch
from sklearn.metrics.pairwise import haversine_distances

from geoclip.datamodule import PhotoBatches
from geoclip.embedding_store import EmbeddingWriter
from geoclip.fit import fit, read_curves
from geoclip.sampling import surprise_neighbours
from geoclip.training import GeoCLIPTraining
from geoclip.training_ranks import TrainingRanks

from .rendered_photos import random_latlon
from .small_world import VARIOGRAM, embeddings_of, write_settings, write_store
from .stopped_run import fit_in_two_parts
from .test_resume import same
from .test_training import SMALL, trainer

N, BATCH, NEAREST = 290, 29, 5  # ten whole batches: no photo is left out
OPTIONS = {"batch_size": BATCH, "ranked": 12, "nearest": NEAREST, "further": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_store(folder / "train", n=N)
    VARIOGRAM.save(folder / "variogram.json")
    return folder


def batches_of(folder, sampler, **options):
    variogram = str(folder / "variogram.json") if sampler == "surprise" else None
    return PhotoBatches(str(folder / "train"), sampler=sampler, variogram=variogram, **{**OPTIONS, **options})


def dissimilarity_of(store):
    """(N, N) float64 1 − cosine of the stored embeddings; infinite to itself."""
    v = store.read(np.arange(N)).astype(np.float64)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    d = 1 - v @ v.T
    np.fill_diagonal(d, np.inf)
    return d


def kilometres_of(store):
    km = haversine_distances(np.radians(store.latlon)) * 6371.0088
    np.fill_diagonal(km, np.inf)
    return km


@pytest.mark.parametrize("sampler", ["geographic", "similarity"])
def test_a_seed_brings_the_nearest(folder, sampler):
    data = batches_of(folder, sampler)
    order = (kilometres_of if sampler == "geographic" else dissimilarity_of)(data.store).argsort(axis=1)
    batch = data.sampler.batch(0)  # all are still to come
    assert batch[1 : 1 + NEAREST].tolist() == order[batch[0], :NEAREST].tolist()
    epoch = np.concatenate([data.sampler.batch(step) for step in range(10)])
    assert sorted(epoch.tolist()) == list(range(N))


def test_a_seed_brings_surprising_photos_and_none_that_are_explained(folder):
    data = batches_of(folder, "surprise")
    embeddings = torch.from_numpy(data.store.read(np.arange(N)))
    hard, false = surprise_neighbours(embeddings, data.store.latlon, VARIOGRAM, 12, candidates=48)
    batch = data.sampler.batch(0).tolist()
    group, apart = [batch[0]], set(false[batch[0]].tolist())
    for row in hard[batch[0], :NEAREST].tolist():
        if row not in {-1, *apart}:
            group.append(row)
            apart.update(false[row].tolist())
    assert len(group) > 1
    assert batch[: len(group)] == group

    def together(sampler):
        return sum(np.isin(false[rows], rows).sum() for rows in map(sampler.batch, range(10)))

    assert together(data.sampler) < 0.5 * together(batches_of(folder, "random").sampler)


class Recording(GeoCLIPTraining):
    """Keeps the rows of its batches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["rows"].tolist())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("sampler", ["geographic", "similarity", "surprise"])
def test_the_trainer_sees_the_samplers_batches(folder, sampler):
    module = Recording(**SMALL, policy="none", queue_size=0)
    data = batches_of(folder, sampler)
    trainer(12).fit(module, data)  # into the second epoch
    assert module.seen == [batches_of(folder, sampler).sampler.batch(step).tolist() for step in range(12)]


@pytest.mark.parametrize("sampler", ["geographic", "similarity", "surprise"])
def test_a_stopped_run_goes_on_exactly(tmp_path, sampler):
    settings = ["--config", str(write_settings(tmp_path, steps=15)), "--data.sampler", sampler]
    settings += ["--data.ranked", "12", "--data.nearest", "4", "--data.further", "2"]
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)
    # step 13 lies in the second epoch of 300 // 24 steps
    parts = torch.load(fit_in_two_parts(settings, tmp_path / "parts", 13), weights_only=True)
    same(whole["state_dict"], parts["state_dict"])
    same(whole["optimizer_states"], parts["optimizer_states"])


def test_what_an_epoch_covers_is_logged_at_its_first_step(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=15)), "--data.sampler", "geographic"]
    settings += ["--data.ranked", "12", "--data.nearest", "4", "--data.further", "2"]
    last = fit([*settings, "--trainer.accumulate_grad_batches", "3", "--trainer.max_steps", "5"])
    (log,) = last.parent.rglob("metrics.csv")
    rows = [row for row in pyarrow.csv.read_csv(log).to_pylist() if row["sampler/distinct_rows"] is not None]
    data = PhotoBatches(
        str(tmp_path / "train"), batch_size=24, sampler="geographic", ranked=12, nearest=4, further=2
    )
    km = kilometres_of(data.store)
    assert [row["step"] for row in rows] == [0, 4]  # batches 0 and 12
    for row, first in zip(rows, (0, 12), strict=True):
        batches = [data.sampler.batch(step) for step in range(first, first + 12)]
        nearest_km = np.mean([km[np.ix_(batch, batch)].min(axis=1).mean() for batch in batches])
        assert row["sampler/mean_neighbour_km"] == pytest.approx(nearest_km, rel=1e-6)
        assert (row["sampler/batches"], row["sampler/distinct_rows"], row["sampler/left_out"]) == (
            12,
            288,
            12,
        )


def test_curves_leave_out_the_samplers_own_steps(tmp_path):
    """The sampler logs at steps 0 and 12, the loss at 4 and 9; of a run of three steps there is no loss."""
    settings = ["--config", str(write_settings(tmp_path, steps=14)), "--data.sampler", "geographic"]
    settings += ["--data.ranked", "12", "--data.nearest", "4", "--data.further", "2"]
    fit([*settings, "--trainer.log_every_n_steps", "5", "--out", str(tmp_path / "long")])
    curves = read_curves(tmp_path / "long")
    assert curves["step"].tolist() == [4, 9]
    assert {column.dtype for column in curves.values()} == {np.dtype(np.float64)}
    assert np.isfinite(curves["loss"]).all()
    short = ["--trainer.max_steps", "3", "--trainer.log_every_n_steps", "5", "--out", str(tmp_path / "short")]
    fit([*settings, *short])
    assert {name: column.tolist() for name, column in read_curves(tmp_path / "short").items()} == {
        name: [] for name in ("step", "loss", "logit_scale", "learning_rate")
    }


def test_a_run_does_not_go_on_with_another_table(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=4)), "--data.sampler", "similarity"]
    fit(settings)
    latlon = random_latlon(300)
    with EmbeddingWriter(tmp_path / "others", 16, info={"backbone": None}) as writer:  # the same places
        writer.append(range(300), latlon, embeddings_of(latlon)[::-1])
    with pytest.raises(ValueError, match=r"holds a run with table_checksum \d+, now table_checksum is \d+"):
        fit([*settings, "--data.train", str(tmp_path / "others")])


def test_ranks_share_one_batch(folder, monkeypatch):
    shares = []
    for rank in range(2):
        ranks = TrainingRanks(rank, 2)
        monkeypatch.setattr(TrainingRanks, "current", lambda ranks=ranks: ranks)
        monkeypatch.setattr(TrainingRanks, "from_first", lambda self, value: value)
        data = batches_of(folder, "geographic")
        data.trainer = trainer(3)
        shares.append([batch["rows"].tolist() for batch in data.train_dataloader()])
    sampler = batches_of(folder, "geographic").sampler
    assert [a + b for a, b in zip(*shares, strict=True)] == [
        sampler.batch(step).tolist() for step in range(3)
    ]
    monkeypatch.setattr(TrainingRanks, "from_first", lambda self, value: value + 1)
    with pytest.raises(ValueError, match="process 1 made another table of photos than process 0"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "surprise", "variogram": None}, "variogram: the sampler 'surprise' .* got None"),
        ({"sampler": "nearest"}, "sampler: wanted one of random, neighbours, geographic, .*got 'nearest'"),
        ({"sampler": "geographic", "ranked": 0}, "k: wanted at least 1"),
    ],
)
def test_bad_settings_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        PhotoBatches(str(folder / "train"), **{**OPTIONS, **options})
