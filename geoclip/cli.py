"""The command line: `geoclip download | embed | variogram | fit | eval | predict | serve | …`.

Every command is a module of `geoclip.commands` that imports what it needs when it runs, so that
`geoclip --help` answers at once. What a user got wrong ends in one line on standard error;
GEOCLIP_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import NoReturn

from geoclip.commands import crossview, demo, download, embed, eval, export, fit, predict, serve, variogram

_DESCRIPTION = """\
Train, evaluate and use GeoCLIP with the semivariogram loss. From your photos to places, in order:

  geoclip embed photos.csv data/train           frozen image embeddings, once per photo
  geoclip variogram data/train                  how alike photos are at which distance
  geoclip fit --data.train data/train --model.variogram variogram.json --out runs/mine
                                                train the image head and the location encoder
  geoclip eval runs/mine/last.ckpt data/test    accuracy within 1, 25, 200, 750 and 2500 km
  geoclip predict photo.jpg --checkpoint runs/mine/last.ckpt     where was this taken?
  geoclip serve --checkpoint runs/mine/last.ckpt     the same as a page to drop photos on
  geoclip export runs/mine/last.ckpt mine       weights for others to use

Photos against satellite images:  geoclip crossview fit --config cvusa, then geoclip crossview eval

Or, without any photo:  geoclip demo; geoclip download osv5m fetches five million"""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command line without the program's name; that of the process by default.

    Returns:
        The exit code: 0; 1 where a command did its work only in part and said so; 2 for a user's mistake;
        130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(arguments)
    except KeyboardInterrupt:
        print("geoclip: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `geoclip predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("GEOCLIP_TRACEBACK"):
            raise
        print(f"geoclip: {_reason(error)}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    code = 0
    if arguments[:1] == ["fit"]:  # Lightning's own parser reads the rest
        fit.run(arguments[1:])
    elif arguments[:2] == ["crossview", "fit"]:
        crossview.run_fit(arguments[2:])
    else:
        options = _parser().parse_args(arguments)
        code = options.run(options) or 0
    sys.stdout.flush()  # here, where a closed pipe can still be caught
    return code


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ModuleNotFoundError):
        if "pip install" in str(error):
            return str(error)
        from semivario_kernels.extras import install_command

        return f"{error}; the trainer's packages come with: {install_command('train')}"
    return " ".join(str(error).split()) or type(error).__name__


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"geoclip: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geoclip", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (download, embed, variogram, fit, eval, predict, serve, crossview, export, demo):
        command.add_parser(commands)
    return parser
