import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.plugins import DoublePrecision
from torch.nn.functional import normalize

from geoclip import cli, lightning_command
from geoclip.checkpoint import AtomicCheckpointIO
from geoclip.crossview.data import CrossViewData, read_views
from geoclip.crossview.fit import fit
from geoclip.crossview.mining import surprising_places
from geoclip.crossview.model import CrossViewEncoder
from geoclip.crossview.training import CrossViewTraining
from geoclip.crossview.views import CrossViews
from geoclip.sampling import EpochBatchSampler
from semivario_kernels import VariogramModel, binned_semivariance, fit_variogram, log_edges_km

from .trees import write_cvact, write_cvusa, write_university1652, write_vigor

TINY = "test_convnext"
RECIPES = ("cvusa", "cvact", "vigor-same", "vigor-cross", "university1652")


def arguments(out, root, dataset="cvusa", epochs=4, **options):
    values = {
        "config": dataset,
        "out": out,
        "checkpoint_every": 2,
        "trainer.max_epochs": epochs,
        "trainer.precision": "32",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.log_every_n_steps": 1,
        "data.root": root,
        "data.batch_size": 8,
        "data.query_size": "[32,64]",
        "data.reference_size": "[32,32]",
        "data.workers": 0,
        "model.backbone": TINY,
        "model.pretrained": "false",
        **options,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=True)["state_dict"]


class StopError(Exception):
    pass


SMALL = {"data.neighbours": 12, "data.nearest": 3, "data.further": 3, "model.similarity_every": 1}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Data and the weights after three epochs of three steps, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    root = write_cvusa(folder / "data", train=24, val=6)
    return root, weights(fit(arguments(folder / "run", root, epochs=3, **SMALL)))


@pytest.mark.parametrize("killed_after", [5, 6])  # inside the second epoch; at its end
def test_a_run_that_was_killed_ends_with_the_same_weights(whole_run, tmp_path, monkeypatch, killed_after):
    root, whole = whole_run
    step = CrossViewTraining.training_step
    steps = 0

    def dying(self, batch, batch_idx):
        nonlocal steps
        steps += 1
        if steps > killed_after:
            raise StopError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CrossViewTraining, "training_step", dying)
    with pytest.raises(StopError):
        fit(arguments(tmp_path / "parts", root, epochs=3, **SMALL))
    monkeypatch.setattr(CrossViewTraining, "training_step", step)
    parts = weights(fit(arguments(tmp_path / "parts", root, epochs=3, **SMALL)))
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_the_learning_rate_rises_for_the_warm_up_epochs(tmp_path, monkeypatch):
    """Five steps of up to two of nine batches an epoch."""
    root = write_cvusa(tmp_path / "data", train=72, val=6)
    rates = []
    step = CrossViewTraining.training_step

    def noting(self, batch, batch_idx):
        if batch_idx % 2 == 0:
            rates.append(self.optimizers().param_groups[0]["lr"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CrossViewTraining, "training_step", noting)
    fit(arguments(tmp_path / "run", root, epochs=2, **{**SMALL, "trainer.accumulate_grad_batches": 2}))
    falling = [0.5 * (1 + np.cos(np.pi * k / 5)) for k in range(5)]
    assert rates == pytest.approx([1e-3 * share for share in (0, 0.2, 0.4, 0.6, 0.8, *falling)])


@pytest.mark.parametrize("killed_after", [3, 7])
def test_a_run_of_a_number_of_steps_goes_on_alike(tmp_path, monkeypatch, killed_after):
    """Seven steps, three an epoch; killed at the end of one, and not at all."""
    root = write_cvusa(tmp_path / "data", train=24, val=6)
    options = {**SMALL, "trainer.max_steps": 7}
    step = CrossViewTraining.training_step
    rows, limit = [], killed_after

    def noting(self, batch, batch_idx):
        if len(rows) == limit:
            raise StopError
        rows.append(batch["query_row"].tolist())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CrossViewTraining, "training_step", noting)
    with pytest.raises(StopError) if killed_after < 7 else contextlib.nullcontext():
        fit(arguments(tmp_path / "parts", root, epochs=3, **options))
    limit = 8
    parts, drawn = weights(fit(arguments(tmp_path / "parts", root, epochs=3, **options))), rows.copy()
    rows.clear()
    whole = weights(fit(arguments(tmp_path / "whole", root, epochs=3, **options)))
    assert drawn == rows
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_plugins_and_callbacks_stand_beside_our_own(tmp_path, monkeypatch, form):
    trainers = []
    monkeypatch.setattr("geoclip.crossview.fit.train", lambda trainer, *_: trainers.append(trainer))
    options = {"trainer.precision": "null"}
    for name, what in (
        ("plugins", "plugins.DoublePrecision"),
        ("callbacks", "callbacks.LearningRateMonitor"),
    ):
        options[f"trainer.{name}"] = form.replace("{}", f'{{"class_path": "lightning.pytorch.{what}"}}')
    root = write_cvusa(tmp_path / "data", train=24, val=6)
    fit(arguments(tmp_path / "run", root, **SMALL, **options))
    assert isinstance(trainers[0].precision_plugin, DoublePrecision)
    assert isinstance(trainers[0].strategy.checkpoint_io, AtomicCheckpointIO)
    kinds = [type(callback) for callback in trainers[0].callbacks]
    assert kinds.count(LearningRateMonitor) == 1
    assert kinds.count(ModelCheckpoint) == 1


def test_a_step_of_several_batches_is_not_cut(tmp_path, monkeypatch):
    """Killed in the third step of two batches, and again in it."""
    root = write_cvusa(tmp_path / "data", train=64, val=6)
    options = {**SMALL, "trainer.accumulate_grad_batches": 2}
    whole = weights(fit(arguments(tmp_path / "whole", root, epochs=1, **options)))
    step = CrossViewTraining.training_step

    def dying(self, batch, batch_idx):
        if batch_idx == 5:
            raise StopError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CrossViewTraining, "training_step", dying)
    for _ in range(2):
        with pytest.raises(StopError):
            fit(arguments(tmp_path / "parts", root, epochs=1, **options))
        state = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
        assert (state["global_step"], state["CrossViewData"]["sampler"]["batches_done"]) == (2, 4)
    monkeypatch.setattr(CrossViewTraining, "training_step", step)
    parts = weights(fit(arguments(tmp_path / "parts", root, epochs=1, **options)))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    root = write_cvusa(tmp_path / "data", train=24, val=6)
    out = tmp_path / "run"
    model = {"model.policy": "explained", "model.variogram": tmp_path / "variogram.json"}
    VariogramModel("exponential", 0.1, 0.5, 300.0).save(tmp_path / "variogram.json")
    before = torch.load(fit(arguments(out, root, epochs=1, **SMALL, **model)), weights_only=True)
    moved = tmp_path / "elsewhere"
    root.replace(moved)
    other = write_cvusa(tmp_path / "other", train=24, val=6)
    lists = [other / "splits" / f"{split}-19zl.csv" for split in ("train", "val")]
    lines = [file.read_text().splitlines() for file in lists]
    lines[0][0], lines[1][0] = lines[1][0], lines[0][0]  # as many pairs, one of them another
    for file, some in zip(lists, lines, strict=True):
        file.write_text("\n".join(some) + "\n")
    VariogramModel("exponential", 0.1, 0.5, 301.0).save(tmp_path / "longer.json")
    for options, message in (
        ({"model.learning_rate": "0.5"}, r"learning_rate 0\.001, now learning_rate is 0\.5; choose"),
        ({"model.label_smoothing": "0.9"}, r"label_smoothing 0\.1, now label_smoothing is 0\.9"),
        ({"model.variogram": tmp_path / "longer.json"}, r"len_scale_km=300\.0.*len_scale_km=301\.0"),
        ({"data.flip": "0.0"}, r"flip 0\.5, now flip is 0\.0"),
        ({"data.batch_size": 4}, r"batch_size 8, now batch_size is 4"),
        ({"data.root": other}, r"images_checksum \d+, now images_checksum is \d+"),
        ({"trainer.max_epochs": 3}, r"max_epochs 1, now max_epochs is 3"),
        ({"trainer.max_steps": 7}, r"max_steps -1, now max_steps is 7"),
        ({"trainer.accumulate_grad_batches": 2}, r"accumulate_grad_batches 1, now .* is 2"),
        ({"trainer.limit_train_batches": 2}, r"limit_train_batches 1\.0, now .* is 2"),
    ):
        with pytest.raises(ValueError, match=f"out: {out} holds a run with .*{message}"):
            fit(arguments(out, moved, epochs=1, **{**SMALL, **model, **options}))
    (tmp_path / "variogram.json").replace(tmp_path / "moved.json")
    model["model.variogram"] = tmp_path / "moved.json"
    after = torch.load(fit(arguments(out, moved, epochs=1, **SMALL, **model)), weights_only=True)
    assert after["global_step"] == before["global_step"] == 3


@pytest.mark.parametrize(
    ("dataset", "write", "expected"),
    [
        ("cvact", write_cvact, {"val/recall@1", "val/ap"}),
        ("vigor-same", write_vigor, {"val/recall@1", "val/hit_rate"}),
        ("university1652", write_university1652, {"val/recall@1", "val/ap"}),
    ],
)
def test_every_data_set_trains_and_is_evaluated(tmp_path, dataset, write, expected):
    root = write(tmp_path / "data")
    options = {"data.batch_size": 4, "trainer.check_val_every_n_epoch": 1}
    if dataset != "university1652":
        options["data.neighbours"] = 8
    fit(arguments(tmp_path / "run", root, dataset, epochs=1, **options))
    header = (
        next((tmp_path / "run" / "logs").glob("version_*/metrics.csv")).read_text().splitlines()[0].split(",")
    )
    assert expected | {"loss", "logit_scale", "sampler/distinct_rows"} <= set(header)
    assert ("sampler/mean_neighbour_km" in header) == (dataset != "university1652")


def test_similarity_replaces_the_neighbours(tmp_path):
    root = write_cvusa(tmp_path / "data")
    run = fit(
        arguments(tmp_path / "run", root, epochs=2, **{"data.neighbours": 6, "model.similarity_every": 2})
    )
    state = torch.load(run, weights_only=True)["CrossViewData"]["sampler"]
    assert (state["epoch"], state["batches_done"]) == (2, 0)
    table = state["tables"][0].numpy()
    assert table.shape == (40, 6)
    assert (table != np.arange(40)[:, None]).all()
    before = CrossViewData("cvusa", str(root), batch_size=8, neighbours=6).sampler.neighbours
    assert (table != before).any()


@pytest.mark.filterwarnings("error::UserWarning:geoclip.*")
def test_surprise_replaces_the_neighbours(tmp_path, monkeypatch):
    root = write_cvusa(tmp_path / "data", train=64)
    data = CrossViewData("cvusa", str(root), batch_size=8, neighbours=6)
    # features of a world with a semivariogram in the place of those of an encoder that saw 64 pictures
    latlon = torch.from_numpy(data.train_views.reference_latlon)
    features = torch.cat(
        (torch.sin(latlon / 6), torch.cos(latlon / 6), 0.2 * torch.randn(64, 4)), dim=1
    ).float()
    monkeypatch.setattr(
        CrossViewTraining, "_embed", lambda *_: torch.nn.functional.normalize(features, dim=1)
    )
    options = {"data.neighbours": 6, "model.similarity_every": 1, "model.similarity_by": "surprise"}
    run = fit(arguments(tmp_path / "run", root, epochs=1, **options))
    near, apart = torch.load(run, weights_only=True)["CrossViewData"]["sampler"]["tables"]
    wanted = surprising_places(features, features, latlon.numpy(), 6)
    for table, want in zip((near, apart), wanted, strict=True):
        assert (table >= 0).sum() > 40
        np.testing.assert_array_equal(table.numpy(), want)


def test_semi_positives_leave_the_loss(tmp_path):
    root = write_vigor(tmp_path / "data")
    data = CrossViewData(
        "vigor-same", str(root), batch_size=8, query_size=(32, 64), reference_size=(32, 32), neighbours=8
    )
    module = CrossViewTraining(TINY, pretrained=False)

    class Trainer:
        datamodule, world_size, global_rank = data, 1, 0

    module._trainer = Trainer()
    found = 0
    for rows in data.sampler.epoch_batches():
        batch = {"query_row": torch.from_numpy(rows), "reference_row": torch.from_numpy(data.pairs[rows])}
        columns = module._no_negatives(batch)
        relation = data.train_views.semi_positives
        for i, row in enumerate(rows):
            wanted = {j for j, other in enumerate(rows) if data.pairs[other] in relation[row]}
            assert set(columns[i].tolist()) - {-1} == wanted
            found += len(wanted)
    assert found > 20


def test_a_place_is_no_negative_of_its_own_rows_on_other_ranks():
    """University-1652's shape, 701 buildings of 54 images, on eight ranks of 128."""
    places, ranks = np.repeat(np.arange(701), 54), 8

    class Data:
        train_views = CrossViews([], [], places, np.arange(701))

    samplers = [
        EpochBatchSampler(len(places), 128, places=places, seed=1, rank=rank, world_size=ranks)
        for rank in range(ranks)
    ]
    gallery = torch.from_numpy(places[[sampler.epoch_batches()[0] for sampler in samplers]])
    same = gallery.flatten()[:, None] == gallery.flatten()
    same.fill_diagonal_(False)
    assert same.any(dim=1).sum() > 700  # of 1,024 rows: the batches of one step do share buildings
    for rank in range(ranks):
        module = CrossViewTraining(TINY, pretrained=False)
        module._trainer = SimpleNamespace(datamodule=Data, world_size=ranks, global_rank=rank)
        module.all_gather = lambda own: gallery
        columns = module._no_negatives({"reference_row": gallery[rank]})
        assert columns.shape == (128, ranks)
        excluded = (columns[:, :, None] == torch.arange(ranks * 128)).any(dim=1)
        assert torch.equal(excluded, same[128 * rank : 128 * (rank + 1)])
    module._trainer.world_size = 1
    assert module._no_negatives({"reference_row": gallery[0]}) is None


def test_disturbances_hang_on_seed_epoch_and_row_only(tmp_path):
    root = write_cvusa(tmp_path / "data")
    data = CrossViewData(
        "cvusa",
        str(root),
        batch_size=8,
        neighbours=6,
        query_size=(32, 64),
        reference_size=(32, 32),
        workers=0,
    )

    class Trainer:
        lightning_module = CrossViewTraining(TINY, pretrained=False)

    data.trainer = Trainer()
    pairs = data.train_dataloader().dataset
    first = pairs[3]
    torch.manual_seed(99)
    for name, value in pairs[3].items():
        assert torch.equal(value, first[name])
    data.sampler.set_epoch(1)
    assert not torch.equal(pairs[3]["query"], first["query"])


def test_both_views_share_one_encoder():
    encoder = CrossViewEncoder(TINY, pretrained=False)
    assert encoder(torch.zeros(2, 3, 32, 64)).shape == encoder(torch.zeros(2, 3, 32, 32)).shape
    assert encoder.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with pytest.raises(ValueError, match="timm has no model 'no_such_net'"):
        CrossViewEncoder("no_such_net", pretrained=False)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_the_published_numbers(name, tmp_path):
    file = lightning_command.RECIPES / f"crossview-{name}.yaml"
    assert lightning_command._with_recipes(["--config", name], "crossview-") == ["--config", str(file)]
    recipe = yaml.safe_load(file.read_text())
    university = name == "university1652"
    assert recipe["data"]["batch_size"] == 128
    assert recipe["trainer"]["max_epochs"] == (1 if university else 40)
    assert recipe["trainer"]["gradient_clip_algorithm"] == "value"
    assert recipe["model"]["warm_up_epochs"] == (0.1 if university else 1)
    assert recipe["model"]["learning_rate"] == 1e-3
    assert recipe["model"]["label_smoothing"] == 0.1
    assert recipe["data"]["sampling"] == ("random" if university else "neighbours")
    assert recipe["model"]["similarity_every"] == (0 if university else 4)


def test_bad_input_is_named(tmp_path, capsys):
    root = write_university1652(tmp_path / "data")
    with pytest.raises(ValueError, match=r"university1652 .*has no coordinates; wanted 'random'"):
        CrossViewData("university1652", str(root), sampling="neighbours")
    with pytest.raises(ValueError, match=r"dataset: wanted cvusa.*got 'paris'"):
        CrossViewData("paris", str(root))
    with pytest.raises(ValueError, match=r"batch of 128 different places .*28 rows of 7 places"):
        CrossViewData("university1652", str(root), sampling="random")
    with pytest.raises(ValueError, match=r"policy: wanted one of none, .*got 'torch_terms'"):
        CrossViewTraining(TINY, pretrained=False, policy="torch_terms")
    with pytest.raises(ValueError, match=r"strengths: .*unexpected keyword argument 'wieght'"):
        CrossViewTraining(TINY, pretrained=False, policy="distance_linear", strengths={"wieght": 1.0})
    with pytest.raises(ValueError, match="variogram: policy 'explained' reads the semivariogram"):
        CrossViewTraining(TINY, pretrained=False, policy="explained")
    with pytest.raises(ValueError, match="similarity_by: wanted 'cosine' or 'surprise', got 'luck'"):
        CrossViewTraining(TINY, pretrained=False, similarity_by="luck")
    options = {"data.batch_size": 4, "model.similarity_every": 1, "model.similarity_by": "surprise"}
    with pytest.raises(ValueError, match="similarity_by: 'surprise' reads places, and the data set has none"):
        fit(arguments(tmp_path / "run", root, "university1652", **options))
    root = write_cvusa(tmp_path / "cvusa", train=24, val=6)
    with pytest.raises(ValueError, match=r"max_epochs: wanted their number, or max_steps, .*got -1"):
        fit(arguments(tmp_path / "run", root, epochs=-1, **SMALL))
    assert cli.main(["crossview", *["fit", *arguments(tmp_path / "run", tmp_path / "none")]]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Two epochs on two processes; the second's batches come from what the first's encoder confuses."""
    folder = tmp_path_factory.mktemp("two")
    root = write_vigor(folder / "data")
    odd = root / "splits" / "Seattle" / "same_area_balanced_test.txt"
    odd.write_text("".join(odd.read_text().splitlines(keepends=True)[:-1]))  # 23 held-out queries for 2 ranks
    options = {"data.batch_size": 8, "data.neighbours": 8, "trainer.devices": 2, "trainer.strategy": "ddp"}
    options |= {"trainer.check_val_every_n_epoch": 2, "model.similarity_every": 1}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(Path(__file__).with_name("two_ranks.py")), str(folder), port]
    command += arguments(folder / "run", root, "vigor-same", epochs=2, **options)
    here = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=here, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return root, folder / "run", ranks


def test_two_processes_see_different_rows(two_ranks):
    first, second = (rank["seen"] for rank in two_ranks[2])
    assert len(first) == len(second) == 2 * (72 // 16)
    for epoch in range(2):
        some = slice(4 * epoch, 4 * epoch + 4)
        rows = [row for batch in (*first[some], *second[some]) for row in batch]
        assert len(set(rows)) == len(rows) == 64


def test_two_processes_have_the_loss_of_one_without_a_places_own_rows(two_ranks):
    """Loss and gradients of every step, against all pairs of one process."""
    root, run, _ = two_ranks
    relation = read_views("vigor-same", str(root), "train").semi_positives
    steps = zip(*(torch.load(run.with_name(f"rank-{rank}.pt")) for rank in range(2)), strict=True)
    again = twice = 0
    for ranks in steps:
        x, y, places, rows = (
            torch.cat([rank[name] for rank in ranks]) for name in ("x", "y", "reference_row", "query_row")
        )
        same = places[:, None] == places
        semi = (torch.from_numpy(relation)[rows][:, :, None] == places).any(dim=1)
        again += int(same.sum()) - len(places)
        # a semi-positive that both ranks have
        twice += int((semi[:, :8, None] & semi[:, None, 8:] & same[:8, 8:]).sum())
        dead = (same | semi).fill_diagonal_(False)
        x, y = x.requires_grad_(), y.requires_grad_()
        logits = ranks[0]["scale"] * normalize(x, dim=1) @ normalize(y, dim=1).T
        logits = logits.masked_fill(dead, -torch.inf)
        targets = torch.where(dead, 0, 0.1 / (~dead).sum(dim=1, keepdim=True)) + 0.9 * torch.eye(len(places))
        of_columns = torch.where(dead, 0, 0.1 / (~dead).sum(dim=0)) + 0.9 * torch.eye(len(places))
        by_row = logits.log_softmax(dim=1).masked_fill(dead, 0)
        by_column = logits.log_softmax(dim=0).masked_fill(dead, 0)
        loss = -(targets * by_row + of_columns * by_column).sum() / (2 * len(places))
        loss.backward()
        assert sum(rank["loss"] for rank in ranks) / 2 == pytest.approx(loss.item(), rel=1e-5)
        for name, wanted in (("dx", x.grad), ("dy", y.grad)):  # of the sum over ranks, which DDP averages
            found = torch.cat([rank[name] for rank in ranks]) / 2
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))
    assert again > 20
    assert twice > 0


def test_two_processes_draw_from_one_table_of_neighbours(two_ranks):
    first, second = two_ranks[2]
    assert (first["mined"], second["mined"]) == (2, 0)
    assert len(first["tables"]) == 2
    assert first["tables"] == second["tables"]
    assert first["tables"][0] != first["tables"][1]


def test_two_processes_validate_as_one_evaluates(two_ranks, tmp_path, capsys):
    root, run, ranks = two_ranks
    assert [rank["embedded"] for rank in ranks] == [12 + 24] * 2  # of 23 queries and 48 references
    logs = next((run / "logs").glob("version_*/metrics.csv")).read_text().splitlines()
    logged = [dict(zip(logs[0].split(","), line.split(","), strict=True)) for line in logs[1:]]
    (validated,) = (line for line in logged if line["val/recall@1"])
    out = tmp_path / "metrics.json"
    command = ["crossview", "eval", str(run / "last.ckpt"), str(root), "--out", str(out)]
    assert cli.main([*command, "--workers", "0", "--batch-size", "5", "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert (result["queries"], result["references"], result["split"]) == (23, 48, "test")
    names = ("recall@1", "recall@5", "recall@10", "recall@1%", "hit_rate", "ap", "ap_step")
    assert sorted(result["metrics"]) == sorted(names)
    assert 0.2 < result["metrics"]["recall@1"]["value"] < 1
    printed = capsys.readouterr().out
    for name, entry in result["metrics"].items():
        assert entry["value"] == pytest.approx(float(validated[f"val/{name}"]), abs=1e-6)
        assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
        assert f"{name:12} {entry['value']:8.4f}" in printed
    assert result["metrics"]["ap"]["low"] < result["metrics"]["ap"]["high"]


def test_the_semivariogram_across_the_views(two_ranks, tmp_path, capsys, monkeypatch):
    root, run, _ = two_ranks
    out = tmp_path / "variogram.json"
    command = ["crossview", "variogram", str(run / "last.ckpt"), str(root), "--out", str(out)]
    command += ["--workers", "0", "--batch-size", "5", "--device", "cpu"]
    assert cli.main(command) == 2  # two epochs on random pictures
    assert "semivariogram of the features: no resolvable range" in capsys.readouterr().err
    assert not out.exists()

    def smooth_in_the_place(options, trained, views):
        latlon = views.reference_latlon
        noise = np.random.default_rng(0).normal(scale=0.3, size=(2, len(latlon), 64))
        turns = (latlon - latlon.mean(axis=0)) @ np.random.default_rng(1).normal(scale=6.0, size=(2, 64))
        features = torch.from_numpy(np.cos(turns) + noise).float()
        return features[0][views.pairs()], features[1]

    monkeypatch.setattr("geoclip.commands.crossview._embed_views", smooth_in_the_place)
    assert cli.main(command) == 0, capsys.readouterr().err
    views = read_views("vigor-same", str(root), "train")
    queries, references = smooth_in_the_place(None, None, views)
    measured = binned_semivariance(
        queries,
        views.reference_latlon[views.pairs()],
        other=references,
        other_latlon=views.reference_latlon,
        edges_km=log_edges_km(0.05, 20_000.0, 40)[1:],
    )
    assert VariogramModel.load(out) == fit_variogram(measured, metric="chord").model
    assert str(out) in capsys.readouterr().out


def test_eval_refuses_what_is_no_checkpoint(tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    for command, message in (
        ([str(tmp_path / "none.ckpt"), str(tmp_path)], "none.ckpt: no such checkpoint"),
        ([str(other), str(tmp_path)], "other.ckpt is no checkpoint of `geoclip crossview fit`"),
        ([str(other), str(tmp_path), "--bootstrap", "0"], "--bootstrap: wanted at least 1, got 0"),
        ([str(other), str(tmp_path), "--batch-size", "0"], "--batch-size: wanted at least 1, got 0"),
    ):
        assert cli.main(["crossview", "eval", *command, "--out", str(tmp_path / "m.json")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["crossview", "train"])
    assert "invalid choice: 'train' (choose from" in capsys.readouterr().err
