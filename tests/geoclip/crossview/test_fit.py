import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from geoclip import cli
from geoclip.crossview.data import CrossViewData
from geoclip.crossview.fit import _RECIPES, _with_recipes, fit
from geoclip.crossview.model import CrossViewEncoder
from geoclip.crossview.training import CrossViewTraining

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


def test_semi_positives_leave_the_loss(tmp_path):
    root = write_vigor(tmp_path / "data")
    data = CrossViewData(
        "vigor-same", str(root), batch_size=8, query_size=(32, 64), reference_size=(32, 32), neighbours=8
    )
    module = CrossViewTraining(TINY, pretrained=False)

    class Trainer:
        datamodule, world_size = data, 1

    module._trainer = Trainer()
    found = 0
    for rows in data.sampler.epoch_batches():
        batch = {"query_row": torch.from_numpy(rows), "reference_row": torch.from_numpy(data.pairs[rows])}
        columns = module._semi_positives(batch)
        relation = data.train_views.semi_positives
        for i, row in enumerate(rows):
            wanted = {j for j, other in enumerate(rows) if data.pairs[other] in relation[row]}
            assert set(columns[i].tolist()) - {-1} == wanted
            found += len(wanted)
    assert found > 20


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
    assert _with_recipes(["--config", name]) == ["--config", str(_RECIPES / f"crossview-{name}.yaml")]
    recipe = yaml.safe_load((_RECIPES / f"crossview-{name}.yaml").read_text())
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
    with pytest.raises(ValueError, match="policy: wanted a preset of NegativePolicy, got 'torch_terms'"):
        CrossViewTraining(TINY, pretrained=False, policy="torch_terms")
    with pytest.raises(ValueError, match="variogram: policy 'explained' reads the semivariogram"):
        CrossViewTraining(TINY, pretrained=False, policy="explained")
    assert cli.main(["crossview", "train"]) == 2
    assert "crossview: wanted 'fit' and its options, got train" in capsys.readouterr().err
    assert cli.main(["crossview", *["fit", *arguments(tmp_path / "run", tmp_path / "none")]]) == 2
    assert "no such file" in capsys.readouterr().err


def test_two_processes_see_different_rows(tmp_path):
    root = write_vigor(tmp_path / "data")
    options = {"data.batch_size": 8, "data.neighbours": 8, "trainer.devices": 2, "trainer.strategy": "ddp"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("two_ranks.py")), str(tmp_path)]
    command += arguments(tmp_path / "run", root, "vigor-same", epochs=2, **options)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 2 * (72 // 16)
    for epoch in range(2):
        some = slice(4 * epoch, 4 * epoch + 4)
        rows = [row for batch in (*first[some], *second[some]) for row in batch]
        assert len(set(rows)) == len(rows) == 64
