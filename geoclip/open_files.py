"""How many files this process may have open: an array that is mapped counts as one as long as it lives."""

from __future__ import annotations

from contextlib import suppress

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]


def allow_open_files(more: int) -> None:
    """Raises the soft limit by `more`, as far as the hard limit goes.

    A login usually starts with 1,024, which a store of 17 million photos in shards of 16,384 uses up.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
    with suppress(ValueError, OSError):  # macOS has a lower limit of its own; opening a file will tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
