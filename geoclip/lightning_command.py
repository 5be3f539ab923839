"""What `geoclip fit` and `geoclip crossview fit` share: Lightning's command line and recipes by name."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, DefaultHelpFormatter
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI

from geoclip.checkpoint import read_checkpoint

CHECKPOINT = "last.ckpt"
RECIPES = Path(__file__).parent / "configs"
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_CLI = TypeVar("_CLI", bound=LightningCLI)


def read_command_line(
    cli: type[_CLI],
    module: type,
    data: type,
    arguments: list[str],
    *,
    prog: str,
    description: str,
    recipes: str = "",
    trainer_defaults: dict[str, Any],
    **options: Any,
) -> _CLI:
    """Make trainer, module and data as the arguments say, without an advertisement on the screen.

    Args:
        cli: the command line.
        module: the Lightning module's class.
        data: the data module's class.
        arguments: what follows the command's name; `--config` takes a YAML file or a recipe's name.
        prog: the command.
        description: of its help.
        recipes: how the names of the command's recipes begin, which the user leaves out.
        trainer_defaults: beside those that both commands share.
        **options: of `LightningCLI`.

    Raises:
        ValueError: a bad argument.
    """
    _quieten()
    variables = prog.replace(" ", "_")
    try:
        return cli(
            module,
            data,
            args=_with_recipes(arguments, recipes),
            run=False,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            # a checkpoint's settings are what the module was made with, not what the command line said
            load_from_checkpoint_support=False,
            trainer_defaults={
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                **trainer_defaults,
            },
            parser_kwargs={
                "prog": prog,
                "description": f"{description} The same command again goes on where it was. --config comes "
                "first: what it holds replaces the options before it. Options not given come from the "
                f"environment, --trainer.max_steps from {variables.upper()}_TRAINER__MAX_STEPS.",
                "exit_on_error": False,
                "default_env": True,
                "env_prefix": variables,
                "formatter_class": _Help,
            },
            **options,
        )
    except ArgumentError as error:
        raise ValueError(_in_our_words(str(error))) from error


def as_list(value: Any) -> list[Any]:
    """What the command line gave where one or several may stand: nothing, one, or a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


class _Help(DefaultHelpFormatter):
    """Without a line for every option's environment variable: the description says how they are called."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return argparse.HelpFormatter._format_action_invocation(self, action)


def refuse_difference(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError at the first setting of a run's folder that is another one now."""
    for name in now:
        if name not in then or then[name] != now[name]:
            raise ValueError(
                f"out: {folder} holds a run with {name} {then.get(name)}, now {name} is {now[name]}; "
                "choose another folder, or remove this one to begin anew"
            )


def train(trainer: Trainer, module: Any, data: Any, checkpoint: Path) -> None:
    """Train, from the checkpoint where there is one, which is said on standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Lightning answers by leaving.
    """
    there = checkpoint.exists()
    if there and trainer.is_global_zero:
        step = read_checkpoint(checkpoint, needed=("global_step",))["global_step"]
        print(f"going on from {checkpoint}, after step {step:,}", file=sys.stderr)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint if there else None, weights_only=True)
    except SystemExit:
        raise KeyboardInterrupt from None


def _with_recipes(arguments: list[str], prefix: str) -> list[str]:
    """`--config osv5m` and `--config=osv5m` with the recipe's path; a file of that name goes first."""
    replaced = list(arguments)
    for position, argument in enumerate(arguments):
        if argument.startswith("--config="):
            begin, name = "--config=", argument.removeprefix("--config=")
        elif position and arguments[position - 1] == "--config":
            begin, name = "", argument
        else:
            continue
        if Path(name).is_file():
            continue
        recipe = RECIPES / f"{prefix}{name}.yaml"
        if recipe.is_file():
            replaced[position] = f"{begin}{recipe}"
        else:
            known = sorted(file.stem.removeprefix(prefix) for file in RECIPES.glob(f"{prefix}*.yaml"))
            if not prefix:
                known = [name for name in known if not name.startswith("crossview-")]
            raise ValueError(f"--config: wanted a YAML file or one of {', '.join(known)}, got {name!r}")
    return replaced


def _in_our_words(message: str) -> str:
    """The parser's complaint with the option as it is typed, and with types as people call them."""
    message = re.sub(r'^Parser key "(.+?)": ', r"--\1: ", " ".join(message.split()))
    message = re.sub(r"Does not validate .*? Errors: .* Given value: (.*)", r"bad value, got \1", message)
    message = re.sub(r"Not of type PositiveInt: (\S+) .*", r"wanted a whole number above 0, got \1", message)
    message = re.sub(r"Expected a (.*)\. Got value: (.*)", r"wanted \1, got \2", message)
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", message)
    for name, words in _TYPES.items():
        message = message.replace(f"<class '{name}'>", words)
    return message


def _quieten() -> None:
    """Leave the progress bar and our own lines on the screen, no advertisements."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
