import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy.contestants import COMPARED, PLAIN, Contestant
from benchmarks.accuracy.detection import KINDS, PREVALENCE, detect, planted_pool
from benchmarks.accuracy.plan import runs
from benchmarks.accuracy.rendered import SIDE, render, rendered
from benchmarks.accuracy.runs import Run, execute, result_of, within
from benchmarks.accuracy.samplers import SAMPLERS, batches
from benchmarks.accuracy.statistics import difference
from benchmarks.accuracy.synthetic import DIM, field_model, make_photos, random_field, world_of
from benchmarks.accuracy.table import markdown, rows_of
from benchmarks.accuracy.training import Training, errors_km, train
from geoclip.calibration import calibrated_logit_scale
from geoclip.datamodule import PhotoBatches
from geoclip.embedding_store import EmbeddingWriter
from geoclip.gallery import Gallery
from geoclip.metrics import great_circle_km
from geoclip.training import GeoCLIPTraining
from semivario_kernels import EARTH_RADIUS_KM, NegativePolicy

TINY = Training(
    steps=6, batch_size=48, neighbours=3, width=16, encoded_size=8, sigma=(2.0, 64.0), precision="float32"
)
EXPLAINED = Contestant("explained", {"hard": 1, "false": 6})


@pytest.fixture(scope="module")
def world():
    return world_of(make_photos(60, 8, 0))


def test_steps_are_those_of_the_trainer(world, tmp_path) -> None:
    settings = replace(TINY, queue_size=96)
    with EmbeddingWriter(tmp_path / "train", world.train.shape[1], info={}) as writer:
        writer.append(np.arange(len(world.train)), world.train_latlon, world.train.float().numpy())
    world.fit.model.save(tmp_path / "variogram.json")
    shared = {name: value for name, value in asdict(settings).items() if name in _TRAINER_SETTINGS}
    module = GeoCLIPTraining(
        embedding_dim=world.train.shape[1],
        output_dim=world.train.shape[1],
        head="linear",
        policy="explained",
        strengths=dict(EXPLAINED.arguments),
        variogram=str(tmp_path / "variogram.json"),
        seed=3,
        **{**shared, "sigma": list(settings.sigma)},
    )
    data = PhotoBatches(str(tmp_path / "train"), batch_size=48, sampler="neighbours", neighbours=3, seed=3)
    trainer = Trainer(
        max_steps=settings.steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)

    rows = batches(world, "neighbours", settings, 3)
    model = train(world, rows, EXPLAINED.policy, settings, 3)
    theirs = dict(module.model.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=2e-5, msg=name)


_TRAINER_SETTINGS = (
    "sigma",
    "width",
    "encoded_size",
    "queue_size",
    "batch_noise_m",
    "queue_noise_m",
    "learning_rate",
    "weight_decay",
    "warm_up",
)


def test_a_run_repeats_and_is_kept(world, tmp_path) -> None:
    run = Run("tiny", EXPLAINED, "neighbours", 1, TINY)
    steps: list[int] = []
    assert result_of(run, tmp_path) is None
    result = execute(run, world, tmp_path, steps.append)
    assert steps == list(range(TINY.steps))
    assert result_of(run, tmp_path) == result
    again = execute(run, world, tmp_path / "again", lambda step: None)
    assert again["rings"] == result["rings"]
    assert again["logit_scale"] == result["logit_scale"]
    other = replace(run, seed=2)
    assert other.path(tmp_path) != run.path(tmp_path)
    assert execute(other, world, tmp_path, lambda step: None)["rings"] != result["rings"]
    others = [
        replace(run, contestant=replace(EXPLAINED, schedule="rising")),
        replace(run, training=replace(TINY, steps=7)),
        replace(run, world="else"),
        replace(run, sampler="random"),
    ]
    assert len({path.path(tmp_path) for path in [run, other, *others]}) == 6


def test_answers_by_support_belong_to_the_default_comparison(world, tmp_path) -> None:
    other = Run("tiny", EXPLAINED, "random", 0, TINY)
    assert execute(other, world, tmp_path, lambda step: None)["rings"].keys() == {"most alike"}
    for name in ("none", "explained"):
        run = Run("tiny", COMPARED[name], "random", 0, TINY)
        result = execute(run, world, tmp_path, lambda step: None)
        assert result["rings"].keys() == {"most alike", "supported"}
        assert result_of(run, tmp_path) == result
        del result["rings"]["supported"]  # a run of before there was such an answer is run again
        run.path(tmp_path).write_text(json.dumps(result))
        assert result_of(run, tmp_path) is None


def test_support_is_calibrated_on_validation_photos(world) -> None:
    model = train(world, batches(world, "random", TINY, 0), PLAIN.policy, TINY, 0)
    gallery, known = Gallery(model, world.gallery), slice(world.validation)
    scale = calibrated_logit_scale(gallery, world.held_out[known], world.held_out_latlon[known])
    sharp = Gallery(model, world.gallery, logit_scale=scale)
    places = sharp.place(world.held_out, variogram=world.fit.model)[0][:, 0]
    ours = errors_km(model, world)
    np.testing.assert_allclose(ours["supported"], great_circle_km(places, world.held_out_latlon))
    assert (ours["supported"] != ours["most alike"]).any()


def test_rings_hold_the_accuracy(world, tmp_path) -> None:
    result = {"rings": {"most alike": "0012345", "supported": "5500000"}, "validation": 2}
    np.testing.assert_allclose(within(result).mean(axis=1), [0, 0.2, 0.4, 0.6, 0.8])
    np.testing.assert_allclose(within(result, validation=True).mean(axis=1), 1)
    np.testing.assert_allclose(within(result, "supported").mean(axis=1), 1)


def test_table_pairs_seeds_with_those_of_plain_infonce() -> None:
    def finished(contestant, seed, rings):
        run = Run("w", contestant, "random", seed, TINY)
        return run, {
            "settings": run.settings(),
            "rings": {"most alike": rings, "supported": rings.replace("5", "2")},
            "validation": 1,
            "training_cpu_s": 2.0 + seed,
        }

    found = [
        finished(PLAIN, 0, "5" + "15" * 50),
        finished(PLAIN, 1, "5" + "15" * 50),
        finished(PLAIN, 2, "5" + "00" * 50),  # has no partner and must not count
        finished(EXPLAINED, 0, "0" + "11" * 50),
        finished(EXPLAINED, 1, "0" + "13" * 50),
    ]
    plain, plain_supported, ours, ours_supported = rows_of(found)
    validated = rows_of(found, validation=True)
    assert [row["answer"] for row in validated] == ["most alike"] * 2
    assert plain["seeds"] == [0, 1, 2]
    assert ours["seeds"] == [0, 1]
    assert plain["difference_points"] is None
    # half of the photos move from beyond 2,500 km to within 200 km
    gains = [interval[0] for interval in plain_supported["difference_points"]]
    assert gains == pytest.approx([0, 0, 50 * 2 / 3, 50 * 2 / 3, 50 * 2 / 3])
    assert ours_supported["difference_points"] == ours["difference_points"]
    assert plain["photos"] == ours["photos"] == 100
    values = [interval[0] for interval in ours["difference_points"]]
    assert values == pytest.approx([0, 25, 25, 50, 50])
    assert ours["difference_points"][0] == [0, 0, 0]
    text = markdown(
        {
            "subject": "accuracy",
            "rows": [plain, ours],
            "training": asdict(TINY),
            "date": "2026-01-01",
            "finished": 5,
            "planned": 6,
            "machine": {"processor": "a processor"},
        }
    )
    assert "5 of 6 runs" in text
    line = "| w | random | `explained(hard=1, false=6)` | most alike | 2 | +0.0 [+0.0, +0.0] | +25.0 ["
    assert line in text
    assert "| **+50.0** [" in text


def test_interval_is_that_of_places_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    # one seed: the interval of a mean over places
    places = 4000
    ours, theirs = rng.random((2, 1, 1, places)) < np.array([0.6, 0.5])[:, None, None, None]
    ((value, low, high),) = difference(ours, theirs)
    spread = 100 * np.std(ours.astype(float) - theirs) / math.sqrt(places)
    assert value == pytest.approx(100 * (ours.mean() - theirs.mean()))
    assert (high - low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.06)
    # seeds that differ, places that agree: the bootstrap of four numbers
    by_seed = np.zeros((4, 1, 50), dtype=bool)
    by_seed[2:] = True
    ((value, low, high),) = difference(by_seed, np.zeros_like(by_seed))
    assert (value, low, high) == (50, 0, 100)
    with pytest.raises(ValueError, match="wanted one shape"):
        difference(ours, theirs[:, :, 1:])


def test_field_has_the_known_semivariogram() -> None:
    rng = np.random.default_rng(1)
    latlon = np.degrees(np.stack([np.arcsin(rng.uniform(-1, 1, 60)), rng.uniform(-np.pi, np.pi, 60)], axis=1))
    # pairs at 5 km to 5,000 km from each place, to the north where that stays on the near side of the pole
    for h_km in (5.0, 50.0, 500.0, 5000.0):
        step = np.degrees(h_km / EARTH_RADIUS_KM)
        other = latlon.copy()
        other[:, 0] += np.where(latlon[:, 0] > 0, -step, step)
        np.testing.assert_allclose(great_circle_km(latlon, other), h_km, rtol=1e-9)
        both = np.concatenate([latlon, other])
        # few of the frequencies reach the shortest lag: four draws of them are 3 % off there
        fields = [random_field(both, rng, dim=500) for _ in range(4)]
        half_squares = 0.5 * np.mean([np.square(field[:60] - field[60:]).mean() for field in fields])
        chord = 2 * EARTH_RADIUS_KM * math.sin(h_km / 2 / EARTH_RADIUS_KM)
        wanted = 1 - 0.5 * math.exp(-chord / 20) - 0.5 * math.exp(-chord / 600)
        assert field_model()(h_km) == pytest.approx(wanted)
        assert half_squares == pytest.approx(wanted, rel=0.1)


def test_pictures_tell_what_the_fields_tell() -> None:
    photos = make_photos(40, 16, 0)
    pictures = render(torch.from_numpy(photos.embeddings) * math.sqrt(DIM), torch.Generator().manual_seed(0))
    assert (pictures.shape, pictures.dtype) == ((640, 3, SIDE, SIDE), torch.uint8)
    assert 60 < pictures.float().std() < 100
    assert ((pictures == 0) | (pictures == 255)).float().mean() < 0.1
    found = rendered(photos, 0)
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    alike, seen = (p.embeddings @ p.embeddings.T for p in (photos, found))
    pairs = np.triu_indices(640, 1)
    assert (
        np.corrcoef(alike[pairs], seen[pairs])[0, 1] > 0.7
    )  # 0.93 where there are more photos than responses
    np.testing.assert_array_equal(rendered(photos, 0).embeddings, found.embeddings)
    assert (rendered(photos, 1).embeddings != found.embeddings).any()


def test_pool_holds_what_was_planted() -> None:
    photos = make_photos(80, 16, 0)
    i, j, truth = planted_pool(photos, 4000, np.random.default_rng(0))
    h_km = great_circle_km(photos.latlon[i], photos.latlon[j])
    d = 1 - (photos.embeddings[i] * photos.embeddings[j]).sum(axis=1)
    for kind in KINDS:
        assert truth[kind].sum() == PREVALENCE * 4000
        assert photos.typical[i[truth[kind]]].all()
        assert d[truth[kind]].mean() < 0.6
    hard, false = (truth[kind] for kind in KINDS)
    assert (photos.twin[photos.town[i[hard]] * 16] == photos.town[j[hard]]).all()
    assert h_km[hard].min() > 100
    assert h_km[false].max() <= 25
    assert d[~hard & ~false].mean() > 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_policies_find_the_planted_negatives(seed) -> None:
    precision = {
        (row["kind"], row["score"]): row["average_precision"]
        for row in detect(pool=10_000, towns=120, per_town=16, seed=seed)
    }
    for kind in KINDS:
        ours = precision[kind, "explained, stable variogram"]
        assert ours >= 0.8
        for rival in ("dissimilarity alone", "distance alone"):
            assert ours >= precision[kind, rival] + 0.2


def test_runs_under_other_settings_are_compared_with_plain_infonce_under_the_same(world, tmp_path) -> None:
    usual = Training()
    slow = replace(usual, learning_rate=5e-4)
    assert Run("w", PLAIN, "random", 0, usual).label == "none()"
    label = "none(), learning rate 0.0005, logit scale from 8"
    assert Run("w", PLAIN, "random", 0, replace(slow, logit_scale=8.0)).label == label
    found = []
    for training, plain, ours in ((usual, "5505", "5500"), (slow, "5005", "0000")):
        for contestant, rings in ((PLAIN, plain), (EXPLAINED, ours)):
            run = Run("w", contestant, "random", 0, training)
            answers = dict.fromkeys(("most alike", "supported"), rings)
            result = {"settings": run.settings(), "rings": answers, "validation": 0, "training_cpu_s": 1.0}
            found.append((run, result))
    rows = [row for row in rows_of(found) if row["answer"] == "most alike"]
    assert [row["label"].endswith(", learning rate 0.0005") for row in rows] == [False, False, True, True]
    assert [row["accuracy_percent"][0] for row in rows] == [25, 50, 50, 100]
    assert rows[0]["difference_points"] is None
    assert rows[2]["difference_points"] is None
    assert [row["difference_points"][0][0] for row in rows[1::2]] == [25, 50]

    starts = [replace(TINY, steps=1, learning_rate=1e-9, logit_scale=scale) for scale in (1 / 0.07, 8.0)]
    ends = [train(world, batches(world, "random", t, 0), PLAIN.policy, t, 0).logit_scale for t in starts]
    assert [float(end.detach().exp()) for end in ends] == pytest.approx([1 / 0.07, 8.0])


@dataclass(frozen=True)
class Tiny(Training):
    steps: int = TINY.steps
    batch_size: int = TINY.batch_size
    neighbours: int = TINY.neighbours
    width: int = TINY.width
    encoded_size: int = TINY.encoded_size
    sigma: tuple[float, ...] = TINY.sigma


def test_command_goes_on_and_writes_a_file_for_its_worlds(world, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "Training", Tiny)
    monkeypatch.setattr(command, "make_world", lambda name, cache, kind="stable": world)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    options = ["--worlds", "synthetic", "--cache", str(tmp_path), "--out", str(tmp_path)]
    assert command.main(["settings", "--seeds", "1", *options]) == 0
    assert "8 runs to go" in capsys.readouterr().out
    (file,) = tmp_path.glob("settings-*-synthetic.json")
    result = json.loads(file.read_text())
    assert (result["planned"], result["finished"], len(result["rows"])) == (8, 8, 16)
    assert sum("logit scale from 8" in row["label"] for row in result["rows"]) == 4
    assert command.main(["training", "--seeds", "2", *options]) == 0
    assert "4 runs, 2 of them finished earlier" in capsys.readouterr().out
    (file,) = tmp_path.glob("accuracy-*-synthetic.json")
    assert {tuple(row["seeds"]) for row in json.loads(file.read_text())["rows"]} == {(0, 1)}


def test_schedules_scale_the_strengths_alone() -> None:
    at = {name: replace(EXPLAINED, schedule=name) for name in ("constant", "rising", "falling", "late")}
    assert at["constant"].policy(0.25) == NegativePolicy.explained(1, 6)
    assert at["rising"].policy(0.25) == NegativePolicy.explained(0.25, 1.5)
    assert at["falling"].policy(0.25) == NegativePolicy.explained(0.75, 4.5)
    assert at["late"].policy(0.49) == NegativePolicy.explained(0, 0)
    assert at["late"].policy(0.5) == NegativePolicy.explained(1, 6)
    nested = replace(COMPARED["threshold-25-km"], schedule="falling")
    assert nested.policy(0.5) == NegativePolicy.threshold(2.5, 2.5, 25)


def test_plan_has_every_combination_seed_by_seed() -> None:
    planned = runs(["a", "b"], [PLAIN, EXPLAINED], ["random", "neighbours"], 2, TINY)
    assert len({run.path(Path()) for run in planned}) == len(planned) == 16
    assert [run.seed for run in planned[:8]] == [0] * 4 + [1] * 4


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_give_whole_batches_without_repeats(world, sampler) -> None:
    rows = batches(world, sampler, TINY, 0)
    assert rows.shape == (6, 48)
    assert all(len(set(batch)) == 48 for batch in rows.tolist())
    assert rows.min() >= 0
    assert rows.max() < len(world.train)
