import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer

from geoclip import datamodule
from geoclip.datamodule import PhotoBatches
from geoclip.datasets import read_photos
from geoclip.embedding_store import EmbeddingWriter
from geoclip.fit import fit, load_trained, read_curves
from geoclip.gallery import Gallery
from geoclip.metrics import great_circle_km
from geoclip.places import read_places
from geoclip.queue import jitter
from geoclip.training import GeoCLIPTraining
from semivario_kernels import NegativePolicy, VariogramModel, semivariogram_info_nce

from .small_world import VARIOGRAM, embeddings_of, write_settings, write_store

SMALL = {"embedding_dim": 16, "output_dim": 16, "sigma": [1.0, 4.0], "width": 16, "encoded_size": 8}


def trainer(steps, **options):
    return Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def batch(n=12, seed=0):
    rng = np.random.default_rng(seed)
    latlon = np.stack([rng.uniform(-80, 80, n), rng.uniform(-180, 180, n)], axis=1)
    return {
        "rows": torch.arange(100 * seed, 100 * seed + n),
        "latlon": torch.from_numpy(latlon),
        "embeddings": torch.from_numpy(embeddings_of(latlon)).float(),
    }


def step(module, one_batch):
    """A training step outside a trainer: its loss, without the logging."""
    module.log_dict = module.log = lambda *_, **__: None
    module.optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    loss = module.training_step(one_batch, 0)
    module.finish_step()
    return loss


def test_the_loss_is_that_of_the_batch_against_batch_and_queue(tmp_path):
    VARIOGRAM.save(tmp_path / "v.json")
    module = GeoCLIPTraining(
        **SMALL,
        policy="explained",
        strengths={"hard": 2, "false": 5},
        variogram=str(tmp_path / "v.json"),
        queue_size=12,
        batch_noise_m=0,
        queue_noise_m=0,
    )
    first, second = batch(seed=1), batch(seed=2)
    step(module, first)  # fills the queue
    places = torch.cat((second["latlon"], first["latlon"]))
    v = torch.cat((second["embeddings"], first["embeddings"])).half()
    with torch.no_grad():
        expected = semivariogram_info_nce(
            module.model.image_encoder(second["embeddings"]),
            module.model.location_encoder(places.float()),
            second["latlon"],
            places,
            module.model.logit_scale.exp(),
            variogram=VARIOGRAM,
            policy=NegativePolicy.explained(hard=2, false=5),
            query_embeddings=v[:12],
            gallery_embeddings=v,
        )
        plain = F.cross_entropy(module.model(second["embeddings"], places.float()), torch.arange(12))
    loss = float(step(module, second).detach())
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert abs(loss - float(plain)) > 1e-3


def test_plain_info_nce_until_the_queue_is_full(tmp_path):
    VARIOGRAM.save(tmp_path / "v.json")
    module = GeoCLIPTraining(
        **SMALL, variogram=str(tmp_path / "v.json"), queue_size=20, batch_noise_m=0, queue_noise_m=0
    )
    seen = []
    for k in range(2):  # the queue holds 0, then 12 places
        now = batch(seed=k)
        places = torch.cat((now["latlon"], *(b["latlon"] for b in seen)))
        with torch.no_grad():
            plain = F.cross_entropy(module.model(now["embeddings"], places.float()), torch.arange(12))
        assert float(step(module, now).detach()) == pytest.approx(float(plain), rel=1e-5)
        seen.append(now)


def test_the_same_photo_in_the_queue_is_no_negative():
    module = GeoCLIPTraining(**SMALL, policy="none", queue_size=12, batch_noise_m=0, queue_noise_m=0)
    now = batch()
    step(module, now)
    with torch.no_grad():
        # the queue holds exactly this batch: every row loses one of its 24 entries
        logits = module.model(now["embeddings"], torch.cat((now["latlon"], now["latlon"])).float())
        logits[torch.arange(12), torch.arange(12, 24)] = -math.inf
        expected = F.cross_entropy(logits, torch.arange(12))
    assert float(step(module, now).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_places_move_and_noise_follows_seed_and_step():
    module = GeoCLIPTraining(**SMALL, policy="none", queue_size=0, batch_noise_m=150)
    seen = []
    module.model.location_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    now = batch()
    step(module, now)
    step(module, now)
    assert torch.equal(seen[0], seen[1])
    again = GeoCLIPTraining(**SMALL, policy="none", queue_size=0, batch_noise_m=150, seed=1)
    again.model.location_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step(again, now)
    assert not torch.equal(seen[0], seen[2])
    distance = 1000 * great_circle_km(seen[0], now["latlon"])
    assert 20 < distance.mean() < 500


def test_the_batch_gets_its_noise_and_the_queue_its_own():
    module = GeoCLIPTraining(**SMALL, policy="none", queue_size=12, batch_noise_m=0, queue_noise_m=50_000)
    seen = []
    module.model.location_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    first, second = batch(seed=1), batch(seed=2)
    step(module, first)
    step(module, second)
    assert torch.equal(seen[1][:12], second["latlon"].float())
    assert 20 < great_circle_km(seen[1][12:], first["latlon"]).mean() < 200
    # what is remembered is the place itself
    assert torch.equal(module.queue.entries()[0], second["latlon"])


def test_weight_decay_touches_matrices_only():
    module = GeoCLIPTraining(**SMALL, policy="none", weight_decay=0.3)
    module._trainer = trainer(5)
    optimizer = module.configure_optimizers()["optimizer"]
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert free["weight_decay"] == 0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in free["params"]} == {0, 1}
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 11, 100])
def test_the_learning_rate_rises_and_falls_in_runs_of_any_length(steps):
    module = GeoCLIPTraining(**SMALL, policy="none", learning_rate=0.5)
    module._trainer = trainer(steps)
    configured = module.configure_optimizers()
    schedule, rates = configured["lr_scheduler"]["scheduler"], []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        configured["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(0.5 / 25)
    if steps >= 3:
        assert max(rates) > 0.45
        assert rates[-1] < 0.01 * max(rates)


def test_the_logit_scale_stays_below_100(tmp_path):
    write_store(tmp_path / "train")
    module = GeoCLIPTraining(**SMALL, policy="none", queue_size=0, learning_rate=0.5)
    with torch.no_grad():
        module.model.logit_scale.fill_(math.log(99.99))
    trainer(6).fit(module, PhotoBatches(str(tmp_path / "train"), batch_size=16))
    assert float(module.model.logit_scale.detach().exp()) <= 100.001


def test_training_learns_where_photos_are(tmp_path):
    """300 smooth embeddings, plain and with the policy: a guess is 10,000 km off."""
    settings = write_settings(tmp_path, steps=150)
    held_out = write_store(tmp_path / "test", n=100, seed=5)
    for policy in ("none", "explained"):
        checkpoint = fit(
            ["--config", str(settings), "--out", str(tmp_path / policy), "--model.policy", policy]
            + (["--model.strengths", "{}"] if policy == "none" else [])
        )
        module = load_trained(checkpoint)
        gallery = Gallery(module.model, read_places(str(tmp_path / "train")))
        latlon, similarity = gallery.place(torch.from_numpy(held_out.read(np.arange(100))), k=3)
        error = np.median(great_circle_km(latlon[:, 0], held_out.latlon))
        assert error < 2500, policy
        assert (np.diff(similarity, axis=1) <= 0).all()
        curves = read_curves(tmp_path / policy)
        assert curves["step"].tolist() == list(range(150))
        assert np.mean(curves["loss"][-10:]) < np.mean(curves["loss"][10:20]) - 0.3
        assert curves["learning_rate"].max() == pytest.approx(0.01, rel=1e-3)


def test_a_checkpoint_brings_model_and_variogram_without_the_files(tmp_path):
    settings = write_settings(tmp_path, steps=5)
    checkpoint = fit(["--config", str(settings)])
    (tmp_path / "variogram.json").unlink()
    module = load_trained(checkpoint)
    assert module.loss.variogram == VARIOGRAM
    assert module.loss.options["policy"] == NegativePolicy.explained(hard=1, false=6)
    assert module.embedding_info == {"backbone": None}
    assert not module.training


def test_the_linear_head_starts_as_the_identity():
    module = GeoCLIPTraining(**SMALL, head="linear", policy="none")
    v = torch.randn(5, 16)
    assert torch.equal(module.model.image_encoder(v), v)
    narrow = GeoCLIPTraining(**{**SMALL, "output_dim": 8}, head="linear", policy="none")
    assert torch.equal(narrow.model.image_encoder(v), v[:, :8])


def test_weights_start_from_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = GeoCLIPTraining(**SMALL, policy="none", seed=3)
    assert torch.equal(torch.rand(3), expected)
    same, other = (GeoCLIPTraining(**SMALL, policy="none", seed=s) for s in (3, 4))
    state = first.state_dict()
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in state.items() if isinstance(v, torch.Tensor))
    assert not torch.equal(
        state["model.location_encoder.LocEnc0.capsule.0.b"],
        other.state_dict()["model.location_encoder.LocEnc0.capsule.0.b"],
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "explain"}, "policy: wanted one of none, .*explained.*, got 'explain'"),
        ({"policy": "none", "strengths": {"hard": 1}}, "strengths: .*hard"),
        ({"strengths": {"false": -1}}, "false"),
        ({"batch_noise_m": -1}, "batch_noise_m.*-1"),
        ({"queue_noise_m": math.nan}, "queue_noise_m.*nan"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"learning_rate": 0}, "learning_rate.*got 0"),
        ({"warm_up": 1.0}, "warm_up.*got 1.0"),
        ({"queue_size": -1}, "size"),
        ({"head": "cubic"}, "head: wanted 'mlp' or 'linear', got 'cubic'"),
        ({"sigma": []}, "sigma"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GeoCLIPTraining(**{**SMALL, **options})


def test_a_policy_without_its_variogram_is_refused_before_the_first_step(tmp_path):
    write_store(tmp_path / "train")
    data = PhotoBatches(str(tmp_path / "train"), batch_size=16)
    with pytest.raises(ValueError, match=r"variogram: policy 'explained'.*got None"):
        trainer(3).fit(GeoCLIPTraining(**SMALL, policy="explained"), data)
    with pytest.raises(ValueError, match=r"max_steps: .*got -1"):
        trainer(-1, max_epochs=1).fit(GeoCLIPTraining(**SMALL, policy="none"), data)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        GeoCLIPTraining(**SMALL, variogram="nowhere.json")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match=r"bad\.json"):
        GeoCLIPTraining(**SMALL, variogram=str(tmp_path / "bad.json"))


def test_a_test_split_is_not_trained_on(tmp_path, monkeypatch):
    latlon = batch(30)["latlon"].numpy()
    for split in ("train", "test"):
        with EmbeddingWriter(tmp_path / split, 16, info={"split": split}) as writer:
            writer.append(range(30), latlon, embeddings_of(latlon))
    assert PhotoBatches(str(tmp_path / "train"), batch_size=4).hparams["rows"] == 30
    with pytest.raises(ValueError, match=r"data.train: .*test holds the test split"):
        PhotoBatches(str(tmp_path / "test"), batch_size=4)
    (tmp_path / "photos.csv").write_text("path,latitude,longitude\na.jpg,1,2\n")
    photos = replace(read_photos(tmp_path / "photos.csv"), split="test")
    monkeypatch.setattr(datamodule, "read_photos", lambda *_, **__: photos)
    with pytest.raises(ValueError, match=r"data.images: im2gps3k holds the test split"):
        PhotoBatches(images="im2gps3k", batch_size=1)


def test_bad_data_arguments_are_named(tmp_path):
    write_store(tmp_path / "train", n=20)
    with pytest.raises(ValueError, match=r"batch_size.*20 rows.*got 21"):
        PhotoBatches(str(tmp_path / "train"), batch_size=21)
    with pytest.raises(ValueError, match=r"sampler: wanted one of random, neighbours, .*, got 'near'"):
        PhotoBatches(str(tmp_path / "train"), batch_size=4, sampler="near")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PhotoBatches(str(tmp_path / "nowhere"))


def test_noise_leaves_the_policy_its_true_distances(tmp_path):
    """With huge noise on the places the log-weights still see the photos where they were taken."""
    model = VariogramModel("exponential", 0.1, 0.8, 1.0)
    model.save(tmp_path / "v.json")
    module = GeoCLIPTraining(
        **SMALL, strengths={"false": 9}, variogram=str(tmp_path / "v.json"), queue_size=0, batch_noise_m=10
    )
    now = batch()
    now["latlon"] = now["latlon"][:1].expand(12, 2).clone()  # everything at one place, and alike
    now["embeddings"] = now["embeddings"][:1].expand(12, 16).clone()
    noise = module._step_generator()
    places = jitter(now["latlon"], 10, noise).float()
    with torch.no_grad():
        logits = module.model(now["embeddings"], places) - 9 * (1 - torch.eye(12))
        expected = F.cross_entropy(logits, torch.arange(12))
    assert float(step(module, now).detach()) == pytest.approx(float(expected), rel=1e-4)
