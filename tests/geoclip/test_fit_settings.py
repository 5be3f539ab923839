"""What the command line of `geoclip fit` offers: printed help, recipes, loggers, precisions, a start."""

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

import geoclip
from geoclip.cli import main
from geoclip.fit import _ProgressBar, fit, load_trained, read_curves

from .small_world import write_settings

CONFIGS = Path(geoclip.__file__).parent / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml") if not path.name.startswith("crossview-"))


def printed(capsys, *arguments):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *map(str, arguments), "--print_config"])
    return capsys.readouterr().out


def test_every_setting_has_its_help_above_it(capsys):
    lines = printed(capsys).splitlines()
    model = lines[lines.index("model:") :]
    for number, line in enumerate(model[1:], start=1):
        if not line.startswith("#") and not line.strip().startswith("#") and not line.endswith(":"):
            assert model[number - 1].strip().startswith("#"), line
    assert "  # earlier places that serve as further negatives." in "\n".join(model)


def test_the_environment_gives_what_the_command_line_does_not(capsys, monkeypatch):
    monkeypatch.setenv("GEOCLIP_FIT_MODEL__QUEUE_SIZE", "77")
    monkeypatch.setenv("GEOCLIP_FIT_DATA__BATCH_SIZE", "11")
    whole = yaml.safe_load(printed(capsys, "--data.batch_size", 13))
    assert (whole["model"]["queue_size"], whole["data"]["batch_size"]) == (77, 13)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--trainer.max_steps from GEOCLIP_FIT_TRAINER__MAX_STEPS" in text
    assert "ENV:" not in text


def test_the_bar_counts_the_whole_run():
    """A run that goes on has fewer batches left than the bar, which began at the run's beginning, shows."""
    bar = _ProgressBar()
    bar._trainer = Trainer(
        max_steps=12, accumulate_grad_batches=2, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    assert bar.total_train_batches == 24


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_understood_and_gives_its_reasons(recipe, capsys):
    text = (CONFIGS / recipe).read_text()
    given, whole = yaml.safe_load(text), yaml.safe_load(printed(capsys, "--config", CONFIGS / recipe))
    for group, settings in given.items():
        if isinstance(settings, dict):
            for name, value in settings.items():
                assert whole[group][name] == value, name
    if recipe != "demo.yaml":
        for line in text.splitlines():
            if ":" in line and not line.startswith("#") and not line.endswith(":"):
                assert "  # " in line, line


def test_bfloat16_trains_as_float32_does(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=12)), "--model.gallery", "40"]
    fit([*settings, "--out", str(tmp_path / "full")])
    mixed = ["--trainer.precision", "bf16-mixed", "--out", str(tmp_path / "mixed")]
    checkpoint = fit([*settings, *mixed])
    full, half = (read_curves(tmp_path / run)["loss"] for run in ("full", "mixed"))
    assert full == pytest.approx(half, rel=2e-2)
    assert (full != half).any()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["model.logit_scale"].dtype == torch.float32
    assert state["queue.latlon"].dtype == torch.float64


def test_tensorboard_logs_beside_the_csv(tmp_path):
    fit(["--config", str(write_settings(tmp_path, steps=3)), "--logger", "tensorboard"])
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(read_curves(tmp_path / "run")["loss"]) == 3


def test_a_run_starts_from_another_ones_weights(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=3))]
    first = fit([*settings, "--out", str(tmp_path / "first")])
    options = [
        "--model.start_from",
        str(first),
        "--model.learning_rate",
        "1e-12",
        "--model.weight_decay",
        "0",
    ]
    second = fit([*settings, *options, "--out", str(tmp_path / "second")])
    weights = [dict(load_trained(checkpoint).model.named_parameters()) for checkpoint in (first, second)]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"start_from: .* is of another architecture: .*has shape"):
        fit([*settings, "--model.start_from", str(first), "--model.width", "8", "--out", str(tmp_path / "x")])


def test_the_step_schedule_falls_at_its_steps(tmp_path):
    settings = ["--config", str(write_settings(tmp_path, steps=6)), "--model.schedule", "step"]
    fit([*settings, "--model.decay", "0.5", "--model.decay_every", "2"])
    rates = read_curves(tmp_path / "run")["learning_rate"]
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])


def test_a_foreign_checkpoint_is_one_line(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign.ckpt is no checkpoint of `geoclip fit`: it has no hyper_"):
        load_trained(tmp_path / "foreign.ckpt")


def test_a_policy_that_sets_in_late_is_said(tmp_path):
    """After the first of four steps of 24 places: 48 are there for the second half of the training."""
    settings = ["--config", str(write_settings(tmp_path, steps=4)), "--model.queue_size"]
    words = r"24 places a step fill a queue of 49 in 3 of the 4 steps, and until then the loss is plain"
    with pytest.warns(UserWarning, match=words):
        fit([*settings, "49"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit([*settings, "48", "--out", str(tmp_path / "shorter")])
    assert not [warning for warning in caught if "queue_size" in str(warning.message)]
