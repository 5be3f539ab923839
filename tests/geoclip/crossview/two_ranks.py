"""One rank of a distributed run: trains, and notes which rows it saw."""

import json
import os
import sys
from pathlib import Path

from geoclip.crossview.fit import fit
from geoclip.crossview.training import CrossViewTraining

_STEP = CrossViewTraining.training_step
_seen: list[list[int]] = []


def _noting(self, batch, batch_idx):
    _seen.append(batch["query_row"].tolist())
    return _STEP(self, batch, batch_idx)


if __name__ == "__main__":
    CrossViewTraining.training_step = _noting
    fit(sys.argv[2:])
    Path(sys.argv[1], f"rank-{os.environ['RANK']}.json").write_text(json.dumps(_seen))
