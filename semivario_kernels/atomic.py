"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Lets `write` fill a temporary file in the same folder, then renames it to `path`.

    A process killed at any moment leaves the old file or the new one under `path`, and at most a hidden
    `.<name>.tmp` beside it, which the next write of the same file replaces. A device or a pipe is written
    straight into.

    Raises:
        OSError: the folder or the disk refuses the file; the message names it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as device:
                write(device)
            return
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
