"""A printed YAML configuration with every setting's help as a comment above it."""

from __future__ import annotations

import argparse
import re
import textwrap

_WIDTH = 110
_NO_HELP = (
    "",
    argparse.SUPPRESS,
    "Path to a configuration file.",
)  # the last stands at every group of settings
_SETTING = re.compile(r"( *)([A-Za-z_]\w*):(?: |$)")


def commented(config: str, parser: argparse.ArgumentParser) -> str:
    """Put the parser's help texts above the settings that they explain.

    Args:
        config: block-style YAML, as `--print_config` writes it.
        parser: the one that wrote it.
    """
    helps = {action.dest: action.help for action in parser._actions if isinstance(action.help, str)}
    lines: list[str] = []
    path: list[tuple[int, str]] = []  # (indentation, name) of the settings that the line is in
    for line in config.splitlines():
        setting = _SETTING.match(line)
        if setting:
            indent, name = len(setting[1]), setting[2]
            path = [*(level for level in path if level[0] < indent), (indent, name)]
            text = helps.get(".".join(name for _, name in path), "")
            if text not in _NO_HELP:
                prefix = " " * indent + "# "
                # a word longer than the line, such as an address, stays whole
                lines += textwrap.wrap(
                    " ".join(text.replace("%%", "%").split()),
                    _WIDTH,
                    initial_indent=prefix,
                    subsequent_indent=prefix,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        lines.append(line)
    return "\n".join(lines) + "\n"
