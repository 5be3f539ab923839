"""Checkpoints of `geoclip fit`: written whole or not at all, and refused in one line where they are none."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from semivario_kernels.atomic import write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning's own goes through the temporary folder; where that is another file system, the last step of its
    "atomic" write is a copy that a kill can interrupt.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint beside its place, then rename it."""
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_atomically(path, lambda file: _save(checkpoint, file))


def _save(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's zip writer complains of a full disk in words of its own
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        raise OSError(str(error)) if cause is None else cause from error


_NEEDED = ("state_dict", "hyper_parameters", "embedding_info", "max_steps", "accumulate_grad_batches")


def read_checkpoint(
    path: str | os.PathLike[str], command: str = "geoclip fit", needed: tuple[str, ...] = _NEEDED
) -> dict[str, Any]:
    """Read a checkpoint of a command, memory-mapped; `needed` is what it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or damaged.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each raise their own on a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{os.fspath(path)} is no checkpoint of `{command}`: {reason}") from error
    missing = [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]
    if missing:
        raise ValueError(f"{os.fspath(path)} is no checkpoint of `{command}`: it has no {missing[0]}")
    return dict(checkpoint)
