"""One rank of torchrun: a whole run, and one that fails at a step and goes on from its checkpoint."""

import sys
from pathlib import Path

import pytest

from geoclip.fit import fit
from geoclip.training import GeoCLIPTraining

if __name__ == "__main__":
    folder, stop, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    fit([*arguments, "--out", str(folder / "whole")])
    training_step = GeoCLIPTraining.training_step

    def stops(self, *batch):
        if self.global_step == stop:
            raise RuntimeError("stopped")
        return training_step(self, *batch)

    GeoCLIPTraining.training_step = stops
    with pytest.raises(RuntimeError, match="stopped"):
        fit([*arguments, "--out", str(folder / "parts")])
    GeoCLIPTraining.training_step = training_step
    fit([*arguments, "--out", str(folder / "parts")])
