"""`geoclip fit`: training from a YAML file, going on by itself where an earlier run was stopped."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.csv
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from geoclip.checkpoint import AtomicCheckpointIO, read_checkpoint
from geoclip.commented_config import commented
from geoclip.datamodule import PhotoBatches
from geoclip.lightning_command import CHECKPOINT, as_list, read_command_line, refuse_difference, train
from geoclip.training import GeoCLIPTraining

PARENT = "GEOCLIP_PARENT"  # environment variable: the process without which a training makes no sense
_LOGS = "logs"


def fit(arguments: list[str]) -> Path:
    """Train as the arguments and their `--config` say; the same command again goes on from the checkpoint.

    Args:
        arguments: what follows `geoclip fit` on the command line. `--config` takes a YAML file or the name of
            a recipe that comes with the package: geoclip, osv5m, demo.

    Returns:
        The checkpoint after the last step.

    Raises:
        ValueError: a bad argument, or an output folder with a checkpoint of a run with other settings.
        OSError: a file is missing, or the output folder cannot be written.
    """
    cli = read_command_line(
        _FitCLI,
        GeoCLIPTraining,
        PhotoBatches,
        arguments,
        prog="geoclip fit",
        description="Train GeoCLIP from cached embeddings or from images. On many GPUs: "
        "torchrun --nproc-per-node 8 -m geoclip fit …",
        trainer_defaults={"max_steps": 10_000},
        seed_everything_default=False,  # everything random has a seed of its own
    )
    checkpoint = Path(cli.config.out) / CHECKPOINT
    if checkpoint.exists():
        _refuse_other_settings(checkpoint, cli.model, cli.datamodule, cli.trainer)
    train(cli.trainer, cli.model, cli.datamodule, checkpoint)
    cli.trainer.save_checkpoint(checkpoint)  # the last step may lie between two checkpoints
    return checkpoint


def read_curves(out: str | Path) -> dict[str, NDArray[np.float64]]:
    """What a run logged: "step" and, of the same length, "loss", "logit_scale" and "learning_rate".

    A run that was stopped and went on has logged some steps twice; the later word counts. Steps at which a
    sampler alone had something to say are left out; there are none in the log of a run that was soon stopped.

    Args:
        out: the run's output folder.

    Raises:
        FileNotFoundError: there is no log in the folder.
    """
    files = sorted(
        Path(out, _LOGS).glob("version_*/metrics.csv"), key=lambda file: int(file.parent.name.split("_")[1])
    )
    if not files:
        raise FileNotFoundError(f"{out}: no training log in this folder")
    logged = (row for file in files for row in pyarrow.csv.read_csv(file).to_pylist())
    rows = {row["step"]: row for row in logged if row.get("loss") is not None}
    columns = ("step", "loss", "logit_scale", "learning_rate")
    return {name: np.array([rows[step][name] for step in sorted(rows)], np.float64) for name in columns}


def load_trained(
    checkpoint: str | Path, *, weights: Literal["averaged", "last"] | None = None
) -> GeoCLIPTraining:
    """Read a checkpoint of `fit` onto the CPU, for evaluation.

    Args:
        checkpoint: the file.
        weights: "averaged" or "last"; by default the average where the run kept one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, a damaged one, or one without the weights asked for.
    """
    read_checkpoint(checkpoint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = GeoCLIPTraining.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    except (RuntimeError, TypeError, KeyError) as error:  # weights or settings of another architecture
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{checkpoint} is no checkpoint of this `geoclip fit`: {reason}") from error
    if weights == "averaged" or (weights is None and module.averaged is not None):
        module.use_averaged_weights()
    return module.float().eval()


class _FitCLI(LightningCLI):
    """Lightning's command line with one output folder, and the data's facts handed to the model."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Print the configuration, where that is asked for, with every setting's help above it."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                super().parse_arguments(parser, args)
        except SystemExit:
            text = printed.getvalue()
            sys.stdout.write(commented(text, parser) if _asks_for_config(args) else text)
            raise
        sys.stdout.write(printed.getvalue())

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--out", type=str, default="runs/fit", help="folder for the checkpoint (last.ckpt) and the logs"
        )
        parser.add_argument(
            "--checkpoint_every", type=PositiveInt, default=100, help="steps from one checkpoint to the next"
        )
        parser.add_argument(
            "--logger",
            type=Literal["csv", "tensorboard", "wandb"],
            default="csv",
            help="logs beside the CSV file in the output folder; WANDB_MODE=offline keeps W&B local",
        )
        for of_data, of_model in (
            ("embedding_dim", "embedding_dim"),
            ("image_backbone", "backbone"),
            ("image_pretrained", "pretrained"),
            ("image_backbone_config", "backbone_config"),
        ):
            parser.link_arguments(f"data.{of_data}", f"model.{of_model}", apply_on="instantiate")
        parser.link_arguments("model.seed", "data.seed")
        parser.link_arguments("model.variogram", "data.variogram")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        out = Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        given = self.config_init["trainer"]
        keep_last = ModelCheckpoint(
            dirpath=out,
            filename=Path(CHECKPOINT).stem,
            every_n_train_steps=self.config.checkpoint_every,
            enable_version_counter=False,
        )
        callbacks = [*as_list(given.callbacks), keep_last]
        if PARENT in os.environ:
            callbacks.append(_EndWithParent(int(os.environ[PARENT])))
        if given.enable_progress_bar is not False:
            callbacks.append(_ProgressBar())
        return super().instantiate_trainer(
            default_root_dir=out,
            logger=_loggers(self.config.logger, out) if given.logger is None else given.logger,
            plugins=[*as_list(given.plugins), AtomicCheckpointIO()],
            callbacks=callbacks,
            **kwargs,
        )


class _EndWithParent(Callback):
    """Ends the training when the process that began it is gone, as after a kill −9 of `geoclip demo`."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def on_train_batch_end(self, *_: Any) -> None:
        if os.getppid() != self.parent:
            raise KeyboardInterrupt


class _ProgressBar(RichProgressBar):
    """One bar for the whole run: it has steps, no epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    @property
    def total_train_batches(self) -> int | float:
        """Of the whole run: one that goes on counts its batches from the run's beginning."""
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return super().total_train_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def _loggers(kind: str, out: Path) -> list[Logger]:
    """The CSV file that reports read, and what else was asked for."""
    loggers: list[Logger] = [CSVLogger(out, name=_LOGS, flush_logs_every_n_steps=10)]
    try:
        if kind == "tensorboard":
            loggers.append(TensorBoardLogger(out, name="tensorboard"))
        elif kind == "wandb":
            loggers.append(WandbLogger(project="geoclip", name=out.name, save_dir=out))
    except ModuleNotFoundError as error:
        raise ValueError(f"logger: {kind!r} is not installed: pip install {kind}") from error
    return loggers


def _asks_for_config(arguments: list[str]) -> bool:
    return any(argument.split("=")[0] == "--print_config" for argument in arguments)


def _of_embeddings(info: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What a store says of itself, and None for what only the other one says."""
    return {f"embedding_info.{name}": info.get(name) for name in sorted({*info, *other})}


def _refuse_other_settings(
    checkpoint: Path, model: GeoCLIPTraining, data: PhotoBatches, trainer: Trainer
) -> None:
    """A run that goes on with other settings would be neither the old run nor the new one."""
    saved = read_checkpoint(checkpoint)
    then = {
        **saved["hyper_parameters"],
        **saved["datamodule_hyper_parameters"],
        "max_steps": saved["max_steps"],
        "accumulate_grad_batches": saved["accumulate_grad_batches"],
        **_of_embeddings(saved["embedding_info"], data.embedding_info),
    }
    now = {
        **model.hparams,
        **data.hparams,
        "max_steps": trainer.max_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        **_of_embeddings(data.embedding_info, saved["embedding_info"]),
        "variogram": model.given_variogram,
    }
    # older checkpoints have neither
    then["variogram"] = saved.get("given_variogram", now["variogram"])
    then.setdefault("latlon_checksum", now["latlon_checksum"])
    if then["latlon_checksum"] != now["latlon_checksum"]:
        raise ValueError(
            f"out: {checkpoint.parent} holds a run on other photos, or on the same ones at other positions "
            "(EXIF rounds them); choose another folder, or remove this one to begin anew"
        )
    refuse_difference(checkpoint.parent, then, now)
