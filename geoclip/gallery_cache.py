"""Features of galleries on disk: computed once per (weights, places), memory-mapped afterwards.

A file `<key>.npy` holds (M, D) float32; the key is the SHA-256 of the location encoder's state dict and of
the places, so that other weights or other places are another file. A file appears whole or not at all, and
processes that compute wait for each other. The files used last stay, up to 4 GiB.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from semivario_kernels.atomic import write_atomically

LARGEST_BYTES = 4 * 2**30
_VERSION = b"geoclip gallery features 1"


def default_cache() -> Path:
    """`semivario-kernels/galleries` in `$XDG_CACHE_HOME` or `~/.cache`."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "semivario-kernels" / "galleries"


def cached_features(
    encoder: nn.Module, places: Tensor, width: int, folder: Path, encode: Callable[[], Iterator[Tensor]]
) -> Tensor:
    """The features of places: from the cache, or computed and put there.

    Where the folder cannot be written, the features stay in memory.

    Args:
        encoder: the location encoder, whose state dict is part of the key.
        places: (M, 2) float32 degrees.
        width: length D of a feature.
        folder: the cache, made if missing.
        encode: gives the places' features in order, some rows at a time.

    Returns:
        (M, D) float32 on the CPU, memory-mapped; writing to it does not change the file.

    Warns:
        UserWarning: the folder cannot be read or written; says why.
    """
    shape = (len(places), width)
    path = folder / f"{_key(encoder, places)}.npy"
    if (found := _map(path, shape)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock"):
            found = _map(path, shape)  # of a process that was faster
            if found is None:
                write_atomically(path, lambda file: _write(file, shape, encode()))
                _forget_oldest(folder, path)
                found = _map(path, shape)
        if found is not None:
            return found
        raise OSError(f"{path} is gone again")
    except OSError as error:
        warnings.warn(f"the gallery's features are not cached: {error}", stacklevel=2)
        return torch.cat(list(encode()))


def _write(file: BinaryIO, shape: tuple[int, int], chunks: Iterator[Tensor]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for chunk in chunks:
        file.write(chunk.cpu().numpy().astype("<f4", copy=False).tobytes())


def _key(encoder: nn.Module, places: Tensor) -> str:
    digest = hashlib.sha256(_VERSION)
    for name, tensor in sorted({**encoder.state_dict(), "places": places}.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _map(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """The file's array; None where there is no such file, or another one."""
    try:
        # copy on write: torch warns of arrays that cannot be written
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != shape or array.dtype != np.float32:
        return None
    with suppress(OSError):  # used now, see _forget_oldest; a cache that is only readable serves as well
        os.utime(path)
    return torch.from_numpy(array)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the operating system gives back whatever becomes of this process."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_oldest(folder: Path, newest: Path) -> None:
    others = sorted(
        (file for file in folder.glob("*.npy") if file != newest), key=lambda file: file.stat().st_mtime
    )
    total = newest.stat().st_size + sum(file.stat().st_size for file in others)
    for file in others:
        if total <= LARGEST_BYTES:
            break
        total -= file.stat().st_size
        file.unlink(missing_ok=True)
