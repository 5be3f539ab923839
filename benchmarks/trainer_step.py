"""`python -m benchmarks.trainer_step`: the parts of a training step, and its memory with a gallery.

The steps are those of `geoclip fit`: official architecture, embeddings of 768 numbers out of a store on disk,
a queue that is full, AdamW. Time: every part of a step in seconds, by timers around the calls; the loss'
backward pass is the time from its gradient's arrival to its departure, next to nothing on the CPU, where the
forward call makes the gradients too. Memory: the peak of the resident set
of a fresh process that trains a small step, which makes the optimiser's state, and one with gallery
negatives, beside a process whose second step has none.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fresh_process import output_of, peak_mib
from benchmarks.machine import describe
from semivario_kernels.atomic import write_atomically

RESULTS = Path(__file__).parent / "results"
DIM = 768
BAR_SHARE, BAR_MIB = 0.15, 2048.0
PARTS = (
    "image head",
    "location encoder",
    "loss",
    "backward of the loss",
    "other backward",
    "optimiser",
    "rest",
)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write `trainer-step-<date>.json` and `.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer_step", description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument(
        "--gallery", type=int, default=100_000, help="places of the memory measurement; 0 skips it"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after a first one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        _child(options)
        return
    file = options.out / f"trainer-step-{datetime.date.today().isoformat()}"
    result = json.loads(file.with_suffix(".json").read_text()) if file.with_suffix(".json").exists() else {}
    result["sizes"] = {"batch": options.batch, "queue": options.queue, "dim": DIM, "dtype": "float32"}
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), max(options.gallery, 2 * (options.batch + options.queue)))
        if options.only != "memory":
            result["time"] = {"machine": describe(torch.device("cpu")), **time_steps(Path(folder), options)}
        if options.only != "time" and options.gallery:
            mib = {
                gallery: _in_fresh_process(Path(folder), options, gallery) for gallery in (0, options.gallery)
            }
            result["memory"] = {
                "machine": describe(torch.device("cpu")),
                "gallery": options.gallery,
                "before_mib": mib[options.gallery][0],
                "peak_mib": mib[options.gallery][1],
                "before_mib_without": mib[0][0],
                "peak_mib_without": mib[0][1],
                "bar_mib": BAR_MIB,
                "met": mib[options.gallery][1] <= BAR_MIB,
            }
    options.out.mkdir(parents=True, exist_ok=True)
    text, table = json.dumps(result, indent=1), table_of(result)
    write_atomically(file.with_suffix(".json"), lambda target: target.write(text.encode()))
    write_atomically(file.with_suffix(".md"), lambda target: target.write(table.encode()))
    print(table)


def write_world(folder: Path, n: int) -> None:
    """A store of n embeddings and a semivariogram."""
    from geoclip.embedding_store import EmbeddingWriter
    from semivario_kernels import VariogramModel

    rng = np.random.default_rng(0)
    latlon = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n)], axis=1)
    with EmbeddingWriter(folder / "train", DIM, info={"backbone": None}) as writer:
        for start in range(0, n, 16384):
            some = slice(start, min(start + 16384, n))
            embeddings = rng.standard_normal((some.stop - start, DIM), dtype=np.float32)
            writer.append(range(start, some.stop), latlon[some], embeddings)
    VariogramModel("stable", 0.1, 0.8, 1500.0, 0.6).save(folder / "variogram.json")


def make_module(folder: Path, queue: int, gallery: int) -> Any:
    """The official architecture under the default policy, with a full queue."""
    from geoclip.training import GeoCLIPTraining

    module = GeoCLIPTraining(
        embedding_dim=DIM, variogram=str(folder / "variogram.json"), queue_size=queue, gallery=gallery
    )
    rng = np.random.default_rng(1)
    module.queue.enqueue(
        torch.from_numpy(rng.uniform(-80, 80, (queue, 2))),
        torch.from_numpy(rng.standard_normal((queue, DIM), dtype=np.float32)),
        torch.arange(10**9, 10**9 + queue),
    )
    return module


def train(module: Any, folder: Path, batch: int, steps: int) -> None:
    """Train some steps."""
    import logging
    import warnings

    from lightning.pytorch import Trainer

    from geoclip.datamodule import PhotoBatches

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PhotoBatches(str(folder / "train"), batch_size=batch))


class Clock:
    """Seconds per part of a step, one list per part."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.marks: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        self.steps[-1][part] = self.steps[-1].get(part, 0.0) + seconds


class _Mark(torch.autograd.Function):
    """The identity; its backward pass notes when the gradient comes by."""

    @staticmethod
    def forward(ctx: Any, clock: Clock, name: str, value: torch.Tensor) -> torch.Tensor:
        ctx.clock, ctx.name = clock, name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        ctx.clock.marks[ctx.name] = time.perf_counter()
        return None, None, gradients[0]


def time_steps(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every part of every step but the first."""
    module, clock = make_module(folder, options.queue, 0), Clock()
    _time_calls(module.model.image_encoder, "image head", clock)
    _time_calls(module.model.location_encoder, "location encoder", clock)
    loss, step = module.loss.forward, module.optimizer_step

    def timed_loss(x: torch.Tensor, y: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        x, y = _Mark.apply(clock, "x", x), _Mark.apply(clock, "y", y)
        start = time.perf_counter()
        value = loss(x, y, *arguments, **named)
        clock.add("loss", time.perf_counter() - start)
        return _Mark.apply(clock, "loss", value)

    def timed_step(epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        clock.steps.append({})
        start = time.perf_counter()

        def timed_closure() -> Any:
            result = closure()
            clock.marks["closure"] = time.perf_counter()
            return result

        step(epoch, batch_idx, optimizer, timed_closure)
        end, marks, now = time.perf_counter(), clock.marks, clock.steps[-1]
        arrived = max(marks["x"], marks["y"])
        now["backward of the loss"] = arrived - marks["loss"]
        now["other backward"] = marks["closure"] - arrived
        now["optimiser"] = end - marks["closure"]
        now["step"] = end - start
        now["rest"] = now["step"] - sum(now[part] for part in PARTS if part != "rest")

    module.loss.forward, module.optimizer_step = timed_loss, timed_step
    train(module, folder, options.batch, 1 + options.steps)
    steps = clock.steps[1:]  # the first one loads code and makes the optimiser's state
    shares = [(now["loss"] + now["backward of the loss"]) / now["step"] for now in steps]
    return {
        "seconds": {part: [now[part] for now in steps] for part in (*PARTS, "step")},
        "loss_share": shares,
        "loss_share_median": float(np.median(shares)),
        "bar": BAR_SHARE,
        "met": float(np.median(shares)) < BAR_SHARE,
    }


def _time_calls(module: torch.nn.Module, part: str, clock: Clock) -> None:
    forward = module.forward

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = forward(*arguments)
        clock.add(part, time.perf_counter() - start)
        return result

    module.forward = timed  # type: ignore[method-assign]


def _in_fresh_process(folder: Path, options: argparse.Namespace, gallery: int) -> tuple[float, float]:
    """MiB of the process before its second step, and at its peak."""
    sizes = f"--batch={options.batch}", f"--queue={options.queue}", f"--gallery={gallery}"
    printed = output_of("-m", "benchmarks.trainer_step", "--child", str(folder), *sizes)
    before, peak = map(float, printed.split()[-2:])
    return before, peak


def _child(options: argparse.Namespace) -> None:
    from geoclip.queue import PlaceQueue

    folder = Path(options.child)
    module = make_module(folder, options.queue, options.gallery)
    step = module.training_step

    def small_at_first(batch: Any, batch_idx: int) -> Any:
        if module.global_step:
            before.append(resident_mib())
            return step(batch, batch_idx)
        gallery, queue = module.gallery, module.queue
        module.gallery, module.queue = module._draw_gallery(0), PlaceQueue(0, DIM)
        loss = step({name: value[:8] for name, value in batch.items()}, batch_idx)
        module.gallery, module.queue = gallery, queue
        module._arrived.clear()
        return loss

    before: list[float] = []
    module.training_step = small_at_first
    train(module, folder, options.batch, 2)
    print(before[0], peak_mib(torch.device("cpu")))


def resident_mib() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def table_of(result: dict[str, Any]) -> str:
    """Markdown of what was measured."""
    sizes = result["sizes"]
    lines = [
        f"# A training step: batch {sizes['batch']:,}, queue {sizes['queue']:,}, official architecture",
        "",
    ]
    if "time" in result:
        of, machine = result["time"], result["time"]["machine"]
        step = float(np.median(of["seconds"]["step"]))
        lines += [
            f"{machine['processor']}, {machine['threads']} threads, torch {machine['versions']['torch']}, "
            f"commit {machine['commit']}. Medians of {len(of['loss_share'])} steps, from cached embeddings.",
            "",
            "| part | seconds | share |",
            "| --- | --- | --- |",
        ]
        for part in (*PARTS, "step"):
            seconds = float(np.median(of["seconds"][part]))
            lines.append(f"| {part} | {seconds:.3f} | {100 * seconds / step:.1f} % |")
        low, high = min(of["loss_share"]), max(of["loss_share"])
        lines += [
            "",
            f"Loss, forward and backward: {100 * of['loss_share_median']:.1f} % of the step "
            f"({100 * low:.1f} to {100 * high:.1f} %), bar {100 * of['bar']:.0f} %: "
            f"{'met' if of['met'] else 'missed'}.",
        ]
    if "memory" in result:
        of = result["memory"]
        lines += [
            "",
            f"Peak of the whole process with {of['gallery']:,} gallery negatives: {of['peak_mib']:,.0f} MiB, "
            f"{of['before_mib']:,.0f} of them before the step; without: {of['peak_mib_without']:,.0f} and "
            f"{of['before_mib_without']:,.0f} MiB; "
            f"bar {of['bar_mib']:,.0f} MiB: "
            f"{'met' if of['met'] else 'missed'}. Commit {of['machine']['commit']}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
