"""`geoclip crossview fit`: Lightning's command line over recipes, with one output folder and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from geoclip.checkpoint import AtomicCheckpointIO, read_checkpoint
from geoclip.crossview.data import CrossViewData
from geoclip.crossview.training import CrossViewTraining, schedule_of
from geoclip.lightning_command import CHECKPOINT, as_list, read_command_line, refuse_difference, train


def fit(arguments: list[str]) -> Path:
    """Train as the arguments and their `--config` say; the same command again goes on from the checkpoint.

    Args:
        arguments: what follows `geoclip crossview fit`. `--config` takes a YAML file or the name of a recipe
            that comes with the package: cvusa, cvact, vigor-same, vigor-cross, university1652.

    Returns:
        The checkpoint after the last step.

    Raises:
        ValueError: a bad argument, or an output folder with a checkpoint of a run with other settings.
        OSError: a file is missing, or the output folder cannot be written.
    """
    cli = read_command_line(
        _CrossViewCLI,
        CrossViewTraining,
        CrossViewData,
        arguments,
        prog="geoclip crossview fit",
        description="Train one encoder on two views, as Sample4Geo.",
        recipes="crossview-",
        trainer_defaults={
            "max_epochs": 40,
            "gradient_clip_val": 100.0,
            "gradient_clip_algorithm": "value",
            "num_sanity_val_steps": 0,
        },
        seed_everything_default=1,  # of the backbone's random weights; batches have a seed of their own
    )
    checkpoint = Path(cli.config.out) / CHECKPOINT
    if checkpoint.exists():
        _refuse_other_settings(checkpoint, cli.model, cli.datamodule, cli.trainer)
    train(cli.trainer, cli.model, cli.datamodule, checkpoint)
    return checkpoint


class _CrossViewCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--out", type=str, default="runs/crossview", help="folder of last.ckpt and the logs"
        )
        parser.add_argument(
            "--checkpoint_every", type=PositiveInt, default=500, help="steps from one checkpoint to the next"
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        out = Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        given = self.config_init["trainer"]
        options: dict[str, Any] = {
            "dirpath": out,
            "filename": Path(CHECKPOINT).stem,
            "enable_version_counter": False,
        }
        return super().instantiate_trainer(
            default_root_dir=out,
            logger=CSVLogger(out, name="logs") if given.logger is None else given.logger,
            plugins=[*as_list(given.plugins), AtomicCheckpointIO()],
            callbacks=[
                *as_list(given.callbacks),
                _WholeEpochs(),
                _InsideEpochs(every_n_train_steps=self.config.checkpoint_every, **options),
                ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **options),
            ],
            **kwargs,
        )


class _InsideEpochs(ModelCheckpoint):
    """Not after an epoch's last batch: what follows it, new neighbours, belongs to the epoch.

    Nor inside a step of several batches, as Lightning does after the first batch of a run that goes on: no
    checkpoint holds the gradient of a part.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class _WholeEpochs(Callback):
    """Hides `max_steps` while a checkpoint's counters are read.

    Lightning takes a run that has it to be inside an epoch, even at the end of one, and would train on a
    batch of the next epoch as another one of the last.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.max_steps = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.epoch_loop.max_steps = self.max_steps


def _refuse_other_settings(
    checkpoint: Path, model: CrossViewTraining, data: CrossViewData, trainer: Trainer
) -> None:
    """A run that goes on with other settings would be neither the old run nor the new one."""
    groups = {
        "hyper_parameters": model.hparams,
        "datamodule_hyper_parameters": data.hparams,
        "schedule": schedule_of(trainer),
    }
    saved = read_checkpoint(checkpoint, "geoclip crossview fit", tuple(groups))
    for group, settings in groups.items():
        refuse_difference(checkpoint.parent, saved[group], settings)
