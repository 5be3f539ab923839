"""A run that is stopped in the middle and started again."""

from pathlib import Path

import pytest

from geoclip.fit import fit
from geoclip.training import GeoCLIPTraining


def fit_in_two_parts(settings: list[str], out: Path, stop_at: int) -> Path:
    """Train until step `stop_at` raises, then with the same settings to the end; returns the checkpoint."""
    training_step = GeoCLIPTraining.training_step

    def stops(self, *arguments):
        if self.global_step == stop_at:
            raise RuntimeError("stopped")
        return training_step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeoCLIPTraining, "training_step", stops)
        with pytest.raises(RuntimeError, match="stopped"):
            fit([*settings, "--out", str(out)])
    return fit([*settings, "--out", str(out)])
