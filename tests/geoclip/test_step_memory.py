import re
import subprocess
import sys
from pathlib import Path

import pytest

from .small_world import VARIOGRAM, write_store

BATCH, QUEUE = 2048, 65_536


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_step_holds_no_tensor_of_batch_times_gallery(tmp_path):
    write_store(tmp_path / "train", n=2 * BATCH)
    VARIOGRAM.save(tmp_path / "variogram.json")
    arguments = [
        Path(__file__).parent / "step_peak.py",
        tmp_path / "train",
        tmp_path / "variogram.json",
        BATCH,
    ]
    peaks = []
    for queue in (64, QUEUE):
        run = subprocess.run(
            [sys.executable, *map(str, arguments), str(queue)], capture_output=True, text=True, check=True
        )
        peaks.append(float(re.search(r"peak (\S+)", run.stdout)[1]))
    one_matrix = BATCH * QUEUE * 4 / 2**20  # 512 MiB in float32
    # the loss's workspace is at most 64 MiB; the rest is the queue and the encoder's activations over it
    assert peaks[1] - peaks[0] < one_matrix / 3
