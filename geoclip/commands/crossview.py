"""`geoclip crossview fit`: Lightning's own parser reads its options, so they travel as they came."""

from __future__ import annotations

from geoclip.commands.options import Commands


def add_parser(commands: Commands) -> None:
    """Names `geoclip crossview` in the help."""
    commands.add_parser(
        "crossview",
        help="photos against satellite images: geoclip crossview fit --config cvusa",
        add_help=False,
    )


def run(arguments: list[str]) -> None:
    """Runs `geoclip crossview fit`.

    Args:
        arguments: what follows `geoclip crossview` on the command line.

    Raises:
        ValueError: it is not `fit`.
    """
    if arguments[:1] in (["-h"], ["--help"]):
        arguments = ["fit", "--help"]
    if arguments[:1] != ["fit"]:
        raise ValueError(
            f"crossview: wanted 'fit' and its options, got {' '.join(arguments[:1]) or 'nothing'}"
        )
    from geoclip.crossview.fit import fit

    print(f"trained: {fit(arguments[1:])}")
