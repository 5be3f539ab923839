"""Run a training step with a queue of the given size and print the process's peak memory in MiB."""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer

from geoclip.datamodule import PhotoBatches
from geoclip.training import GeoCLIPTraining

if __name__ == "__main__":
    store, variogram, batch_size, queue_size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    module = GeoCLIPTraining(
        embedding_dim=16, output_dim=16, sigma=[4.0], width=8, encoded_size=4, variogram=variogram,
        queue_size=queue_size,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    module.queue.enqueue(
        torch.from_numpy(rng.uniform(-80, 80, (queue_size, 2))),
        torch.from_numpy(rng.normal(size=(queue_size, 16))),
        torch.arange(10**6, 10**6 + queue_size),
    )
    assert module.queue.full  # the policy is in force from the first step on
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, PhotoBatches(store, batch_size=batch_size))
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print("peak", int(peak[1]) / 1024)
