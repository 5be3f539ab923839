"""A lock that one process holds on a file, and that ends with the process, however it ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: WeakSet[BinaryIO] = WeakSet()


def hold_lock(path: Path) -> BinaryIO:
    """Takes the lock, which lasts until the file returned is closed.

    Where the file system knows no locks, there is none.

    Raises:
        BlockingIOError: another process, or another part of this one, holds it.
        OSError: the file cannot be made.
    """
    file = open(path, "ab")  # noqa: SIM115
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        return file
    _held.add(file)
    return file


def _leave_to_the_parent() -> None:
    """A worker's copy would go on holding the lock of a process that was killed."""
    for file in _held:
        with suppress(OSError):
            file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
