"""Two ranks of a distributed run, forked after the imports: each trains and notes what it saw."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import torch
import torch._dynamo  # or the first call of a custom operator would, in both ranks

from geoclip.crossview import training
from geoclip.crossview.fit import fit
from geoclip.sampling import EpochBatchSampler


def train(rank, folder, port, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "two"}
    seen, tables, mined, embedded, losses = [], [], [], [], []
    step, set_neighbours = training.CrossViewTraining.training_step, EpochBatchSampler.set_neighbours
    validate, mine = training.CrossViewTraining.validation_step, training.similar_places
    info_nce = training.semivariogram_info_nce

    def noting_step(self, batch, batch_idx):
        seen.append(batch["query_row"].tolist())
        losses.append({name: batch[name] for name in ("query_row", "reference_row")})
        return step(self, batch, batch_idx)

    def noting_tables(self, neighbours, avoid=None):
        tables.append(neighbours.tolist())
        set_neighbours(self, neighbours, avoid)

    def noting_images(self, images, *index):
        embedded.append(len(images))
        validate(self, images, *index)

    def noting_mining(*arguments):
        mined.append(None)
        return mine(*arguments)

    def noting_loss(x, y, query_latlon, gallery_latlon, scale, **options):
        loss = info_nce(x, y, query_latlon, gallery_latlon, scale, **options)
        noted = losses[-1]
        noted |= {"x": x.detach(), "y": y.detach(), "scale": scale.detach(), "loss": loss.detach()}
        x.register_hook(lambda gradient: noted.update(dx=gradient))
        y.register_hook(lambda gradient: noted.update(dy=gradient))
        return loss

    training.semivariogram_info_nce = noting_loss
    training.CrossViewTraining.training_step = noting_step
    training.CrossViewTraining.validation_step = noting_images
    training.similar_places = noting_mining
    EpochBatchSampler.set_neighbours = noting_tables
    torch.set_num_threads(1)
    fit(arguments)
    found = {"seen": seen, "tables": tables, "mined": len(mined), "embedded": sum(embedded)}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))
    torch.save(losses, Path(folder, f"rank-{rank}.pt"))


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=train, args=(rank, *sys.argv[1:3], sys.argv[3:])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in ranks))
