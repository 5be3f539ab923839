"""`geoclip crossview fit`: Lightning's command line over recipes, with one output folder and exact resume."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

from geoclip.checkpoint import AtomicCheckpointIO
from geoclip.crossview.data import CrossViewData
from geoclip.crossview.training import CrossViewTraining

CHECKPOINT = "last.ckpt"
_RECIPES = Path(__file__).parents[1] / "configs"


def fit(arguments: list[str]) -> Path:
    """Train as the arguments and their `--config` say; the same command again goes on from the checkpoint.

    Args:
        arguments: what follows `geoclip crossview fit`. `--config` takes a YAML file or the name of a recipe
            that comes with the package: cvusa, cvact, vigor-same, vigor-cross, university1652.

    Returns:
        The checkpoint after the last step.

    Raises:
        ValueError: a bad argument.
        OSError: a file is missing, or the output folder cannot be written.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    try:
        cli = _CrossViewCLI(
            CrossViewTraining,
            CrossViewData,
            args=_with_recipes(arguments),
            run=False,
            seed_everything_default=1,  # of the backbone's random weights; batches have a seed of their own
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "max_epochs": 40,
                "gradient_clip_val": 100.0,
                "gradient_clip_algorithm": "value",
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            parser_kwargs={
                "prog": "geoclip crossview fit",
                "description": "Train one encoder on two views, as Sample4Geo. "
                "The same command again goes on where it was.",
                "exit_on_error": False,
            },
        )
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    checkpoint = Path(cli.config.out) / CHECKPOINT
    try:
        cli.trainer.fit(
            cli.model,
            cli.datamodule,
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,
        )
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    return checkpoint


def _with_recipes(arguments: list[str]) -> list[str]:
    """`--config cvusa` with the recipe's path."""
    replaced = list(arguments)
    for position in range(1, len(arguments)):
        recipe = _RECIPES / f"crossview-{arguments[position]}.yaml"
        if arguments[position - 1] == "--config" and recipe.is_file():
            replaced[position] = str(recipe)
    return replaced


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
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                *(given.callbacks or []),
                _InsideEpochs(every_n_train_steps=self.config.checkpoint_every, **options),
                ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, **options),
            ],
            **kwargs,
        )


class _InsideEpochs(ModelCheckpoint):
    """Not after an epoch's last batch: what follows it, new neighbours, belongs to the epoch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *args)
