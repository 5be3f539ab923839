import json

import pytest
import torch

from geoclip.cli import main
from geoclip.datamodule import PhotoBatches
from geoclip.fit import fit, load_trained
from geoclip.model import GeoCLIP
from geoclip.training import GeoCLIPTraining

from .small_world import write_settings, write_store
from .stopped_run import fit_in_two_parts
from .test_resume import same
from .test_training import SMALL, trainer

DECAY = 0.9


class Recording(GeoCLIPTraining):
    """Keeps the weights after every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def finish_step(self):
        super().finish_step()
        self.seen.append([p.detach().clone() for p in self.model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_is_that_of_the_steps(tmp_path, accumulate):
    write_store(tmp_path / "train")
    module = Recording(**SMALL, policy="none", queue_size=0, ema=DECAY)
    data = PhotoBatches(str(tmp_path / "train"), batch_size=16)
    trainer(7, accumulate_grad_batches=accumulate).fit(module, data)
    assert len(module.seen) == 7
    wanted = [p.double() for p in module.seen[0]]
    for weights in module.seen[1:]:
        wanted = [DECAY * mean + (1 - DECAY) * p.double() for mean, p in zip(wanted, weights, strict=True)]
    module.use_averaged_weights()
    for got, want, last in zip(module.model.parameters(), wanted, module.seen[-1], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
        assert not torch.equal(got, last)


def test_evaluation_takes_the_average_unless_told_otherwise(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=6))]
    averaged = fit([*settings, "--model.ema", "0.8", "--out", str(tmp_path / "averaged")])
    plain = fit([*settings, "--out", str(tmp_path / "plain")])
    last = dict(load_trained(averaged, weights="last").model.named_parameters())
    mean = dict(load_trained(averaged, weights="averaged").model.named_parameters())
    chosen = dict(load_trained(averaged).model.named_parameters())
    without = dict(load_trained(plain).model.named_parameters())
    for name in last:
        assert torch.equal(last[name], without[name])  # an average changes nothing of the training
        assert torch.equal(mean[name], chosen[name])
    assert any(not torch.equal(last[name], mean[name]) for name in last)
    with pytest.raises(ValueError, match="no average"):
        load_trained(plain, weights="averaged")


def test_the_average_goes_on_where_it_was(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=9)), "--model.ema", "0.8"]
    whole = torch.load(fit([*settings, "--out", str(tmp_path / "whole")]), weights_only=True)
    parts = torch.load(fit_in_two_parts(settings, tmp_path / "parts", 6), weights_only=True)
    assert any(name.startswith("averaged") for name in parts["state_dict"])
    same(whole["state_dict"], parts["state_dict"])
    same(whole["optimizer_states"], parts["optimizer_states"])


def test_the_average_is_no_trained_weight():
    module = GeoCLIPTraining(**SMALL, policy="none", ema=0.99)
    module._trainer = trainer(5)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        p.numel() for p in module.model.parameters()
    )
    assert not any(p.requires_grad for p in module.averaged.parameters())
    with pytest.raises(ValueError, match=r"ema: .*got 1.0"):
        GeoCLIPTraining(**SMALL, policy="none", ema=1.0)


def test_commands_take_the_weights_asked_for(tmp_path, capsys):
    settings = ["--config", str(write_settings(tmp_path, steps=6))]
    averaged = str(fit([*settings, "--model.ema", "0.8", "--out", str(tmp_path / "averaged")]))
    plain = str(fit([*settings, "--out", str(tmp_path / "plain")]))
    places, test = ["--gallery", str(tmp_path / "train")], str(write_store(tmp_path / "test", 30, 9).path)
    cached = [*places, "--gallery-cache", str(tmp_path / "cache")]
    releases, predictions = {}, {}
    for choice, wanted in ((None, "averaged"), ("averaged", "averaged"), ("last", "last")):
        chosen = [] if choice is None else ["--weights", choice]
        metrics, release = tmp_path / "metrics.json", tmp_path / f"release-{choice}"
        assert (
            main(["eval", averaged, test, *chosen, *cached, "--out", str(metrics), "--bootstrap", "9"]) == 0
        )
        assert json.loads(metrics.read_text())["weights"] == wanted
        assert f"<dd>{wanted}</dd>" in metrics.with_suffix(".html").read_text()
        assert main(["export", averaged, str(release), *chosen, *places]) == 0
        releases[choice] = dict(GeoCLIP.from_pretrained(release).named_parameters())
        for name, weight in load_trained(averaged, weights=wanted).model.named_parameters():
            assert torch.equal(releases[choice][name], weight)
        capsys.readouterr()
        assert main(["predict", test, "--checkpoint", averaged, *chosen, *cached]) == 0
        predictions[choice] = capsys.readouterr().out
    assert predictions[None] == predictions["averaged"] != predictions["last"]
    for arguments, word in (
        (["eval", plain, test, "--weights", "averaged"], "the run kept no average"),
        (
            ["export", str(tmp_path / "release-last"), "out", "--weights", "last"],
            "wanted no choice, got 'last'",
        ),
        (["predict", test, "--checkpoint", "upstream", "--weights", "averaged"], "upstream holds one set"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert word in line
