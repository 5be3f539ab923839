"""`geoclip fit`: Lightning's own parser reads its options, so they travel as they came."""

from __future__ import annotations

from geoclip.commands.options import Commands, say_trained


def add_parser(commands: Commands) -> None:
    """Names `geoclip fit` in the help."""
    commands.add_parser("fit", help="train; see geoclip fit --help and --print_config", add_help=False)


def run(arguments: list[str]) -> None:
    """Runs `geoclip fit`.

    Args:
        arguments: what follows `geoclip fit` on the command line.
    """
    from geoclip.fit import fit

    say_trained(fit(arguments))
