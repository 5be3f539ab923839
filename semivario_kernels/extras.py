"""The command that installs a missing optional package, for the messages that name it."""


def install_command(extra: str) -> str:
    """Say how the packages of an extra of pyproject.toml are installed."""
    return f"pip install 'semivario-kernels[{extra}]' (in a clone: pip install '.[{extra}]')"
