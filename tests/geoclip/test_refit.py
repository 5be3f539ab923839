import warnings

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from geoclip.datamodule import PhotoBatches
from geoclip.fit import fit, load_trained
from geoclip.refit import refit_variogram
from geoclip.training import GeoCLIPTraining
from semivario_kernels import (
    SemivariogramInfoNCE,
    VariogramModel,
    binned_semivariance,
    fit_variogram,
    log_edges_km,
)

from .rendered_photos import random_latlon
from .small_world import VARIOGRAM, embeddings_of, write_settings, write_store
from .stopped_run import fit_in_two_parts
from .test_resume import same
from .test_training import SMALL, trainer


def photos(n=400, seed=0):
    latlon = random_latlon(n, seed)
    return torch.from_numpy(latlon), torch.from_numpy(embeddings_of(latlon)).half()


def test_a_refit_is_the_fit_of_all_pairs():
    latlon, embeddings = photos()
    got = refit_variogram(latlon, embeddings, VARIOGRAM)
    measured = binned_semivariance(
        embeddings.float().numpy(), latlon.numpy(), edges_km=log_edges_km(10, 20_000, 24), backend="reference"
    )
    want = fit_variogram(measured, "exponential").model
    h = np.array([0, 10, 300, 2000, 9000.0])
    np.testing.assert_allclose(got(h), want(h), rtol=1e-4, atol=1e-9)
    assert got.kind == "exponential"
    assert refit_variogram(latlon, embeddings, None).kind == "stable"


@pytest.mark.parametrize("case", ["white noise", "one place", "one picture"])
def test_a_degenerate_fit_keeps_the_previous_model(case):
    latlon, embeddings = photos(200)
    generator = torch.Generator().manual_seed(0)
    if case == "white noise":
        embeddings = torch.randn(200, 16, generator=generator)
    elif case == "one place":
        latlon = latlon[:1].expand(200, 2)
    else:
        embeddings = embeddings[:1].expand(200, 16)
    with pytest.warns(UserWarning, match="refit of the semivariogram: .*the previous semivariogram stays"):
        assert refit_variogram(latlon, embeddings, VARIOGRAM) is VARIOGRAM
    with pytest.warns(UserWarning, match="plain InfoNCE goes on"):
        assert refit_variogram(latlon, embeddings, None) is None


class Watched(GeoCLIPTraining):
    """Keeps the semivariogram of every step, and whether the policy was in force."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.models, self.in_force = [], []
        self.loss.register_forward_hook(lambda *_: self.in_force.append(self.global_step))

    def training_step(self, *batch):
        loss = super().training_step(*batch)
        self.models.append(self.loss.variogram)
        return loss


@pytest.mark.parametrize("source", ["queue", "train"])
def test_every_k_steps_once_the_queue_is_full(tmp_path, source):
    VARIOGRAM.save(tmp_path / "v.json")
    write_store(tmp_path / "train")
    module = Watched(
        **SMALL,
        variogram=str(tmp_path / "v.json"),
        queue_size=96,
        refit_every=4,
        refit_from=source,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(11).fit(module, PhotoBatches(str(tmp_path / "train"), batch_size=32))
    assert module.in_force[0] == 3  # the queue is full after three steps
    changes = [step for step in range(1, 11) if module.models[step] != module.models[step - 1]]
    assert module.models[0] == VARIOGRAM
    assert set(changes) <= {4, 8}
    assert changes


def test_without_a_variogram_the_policy_sets_in_at_the_first_fit(tmp_path):
    write_store(tmp_path / "train")
    module = Watched(**SMALL, queue_size=96, refit_every=100)
    trainer(6).fit(module, PhotoBatches(str(tmp_path / "train"), batch_size=32))
    assert module.models[:3] == [None] * 3
    assert module.in_force == [3, 4, 5]
    assert isinstance(module.models[3], VariogramModel)
    assert len(set(module.models[3:])) == 1


def test_a_first_fit_that_finds_nothing_waits_for_the_next_due_step(tmp_path, monkeypatch):
    """Of a queue that is full after three steps, whole and stopped between the first try and the next."""
    settings = ["--config", str(write_settings(tmp_path, steps=11)), "--checkpoint_every", "1"]
    settings += ["--model.variogram", "null", "--model.refit_every", "4"]
    tried, now = [], []
    step = GeoCLIPTraining.training_step
    monkeypatch.setattr(
        GeoCLIPTraining, "training_step", lambda self, *a: (now.append(self.global_step), step(self, *a))[1]
    )
    monkeypatch.setattr("geoclip.training.refit_variogram", lambda *_: tried.append(now[-1]))
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)
    assert tried == [3, 4, 8]
    tried.clear()
    parts = torch.load(fit_in_two_parts(settings, tmp_path / "parts", 6), weights_only=True)
    assert tried == [3, 4, 8]
    same(whole["state_dict"], parts["state_dict"])


def test_the_checkpoint_carries_the_refitted_model(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=9)), "--model.refit_every", "3"]
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)
    checkpoint = fit_in_two_parts(settings, tmp_path / "parts", 6)
    parts = torch.load(checkpoint, weights_only=True)
    same(whole["state_dict"], parts["state_dict"])
    model = load_trained(checkpoint).loss.variogram
    assert isinstance(model, VariogramModel)
    assert model != VARIOGRAM


def test_a_refit_does_not_recompile():
    loss = SemivariogramInfoNCE(VARIOGRAM)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (5, 9))
    latlon, v = photos(9)

    def step(module):
        return module(
            x, y, latlon[:5], latlon, torch.tensor(10.0), query_embeddings=v[:5], gallery_embeddings=v
        )

    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    losses = []
    for model in (
        VARIOGRAM,
        VariogramModel("exponential", 0.3, 0.4, 90.0),
        VariogramModel("exponential", 0.05, 0.9, 9000.0),
    ):
        loss.variogram = model
        losses.append(float(compiled(loss).detach()))
        assert losses[-1] == pytest.approx(float(step(loss).detach()), rel=1e-6)
    assert len(set(losses)) == 3
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refit_every": -1}, r"refit_every: wanted at least 0, got -1"),
        ({"refit_from": "moon"}, r"refit_from: wanted one of queue, train, got 'moon'"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GeoCLIPTraining(**SMALL, **options)


def test_a_refit_needs_photos(tmp_path):
    write_store(tmp_path / "train")
    data = PhotoBatches(str(tmp_path / "train"), batch_size=16)
    with pytest.raises(ValueError, match=r"refit_from: the queue holds 0 photos"):
        trainer(3).fit(GeoCLIPTraining(**SMALL, queue_size=0, refit_every=2), data)
