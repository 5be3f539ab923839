"""`python -m benchmarks.scaling.plan`: the tables of docs/scale.md, from the formulas the tests count by.

Bytes come from `semivario_kernels.communication_plan`. FLOPs are those of the two passes of a loss over a
group, 4(D + E) + 4D a pair. Rates of GPUs and networks are nominal: nobody has measured them with this code.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from semivario_kernels.communication_plan import RowBytes, plan_communication

DOCUMENT = Path("docs/scale.md")
BEGIN, END = "<!-- python -m benchmarks.scaling.plan --write -->\n", "<!-- end -->\n"
RESULTS = Path("benchmarks/results")
LOSS_RESULT = "cpu-2026-11-21.json"
VARIOGRAM_RESULT = "semivariogram-cpu-2026-11-21-full.json"

D, E, BYTES = 512, 768, 2  # bf16
POSITION_BYTES = 16
GPU_FLOPS = 400e12  # a second and GPU
LINK_BYTES = {8: 400e9, 64: 50e9}  # a second and GPU: within a machine, between machines


@dataclass(frozen=True)
class Step:
    """A step of the loss: N queries before M gallery entries in all."""

    name: str
    n: int
    m: int
    symmetric: bool = False

    @property
    def row_bytes(self) -> RowBytes:
        return RowBytes(
            D * BYTES, D * 4, E * BYTES, (POSITION_BYTES, POSITION_BYTES), symmetric=self.symmetric
        )


STEPS = (
    Step("batch against itself, symmetric", 32_768, 32_768, symmetric=True),
    Step("OSV5M gallery", 32_768, 4_900_000),
    Step("LAION-scale gallery", 32_768, 1_000_000_000),
    Step("both sides large, symmetric", 4_900_000, 4_900_000, symmetric=True),
)
FLOPS_PER_PAIR = 4 * (D + E) + 4 * D


def tables() -> str:
    """Both tables and the measured rates, as Markdown."""
    return "\n".join([*_step_table(), "", *_variogram_table(), "", *_measured()]) + "\n"


def _step_table() -> list[str]:
    lines = [
        "| step, N × M | ranks | travels | scheme | shards a rank | sent a rank, forward + backward | "
        "FLOPs a rank | at nominal rates: compute + sending |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for step in STEPS:
        for world, link in LINK_BYTES.items():
            queries, gallery = ([size // world] * world for size in (step.n, step.m))
            row = step.row_bytes
            plan = plan_communication(queries, gallery, row)
            forward, backward = (
                sum(plan.sent_bytes(0, visit) for visit in visits)
                for visits in (row.sums_visits(plan.travels), row.gradient_visits(plan.travels))
            )
            held = (queries[0] + gallery[0]) * (D * BYTES + D * 4 + E * BYTES + POSITION_BYTES)
            flops = step.n * step.m / world * FLOPS_PER_PAIR
            lines.append(
                f"| {step.name}, {step.n:,} × {step.m:,} | {world} | {plan.travels} | {plan.scheme} | "
                f"{_bytes(held)} | {_bytes(forward)} + {_bytes(backward)} | {flops:.2g} | "
                f"{_seconds(flops / GPU_FLOPS)} + {_seconds((forward + backward) / link)} |"
            )
    return lines


def _variogram_table() -> list[str]:
    lines = [
        "| exact semivariogram of | pairs | FLOPs | 8 ranks, nominal | 64 ranks, nominal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, places in (("OSV5M, 4.9 million", 4_900_000), ("LAION-scale, 1 billion", 1_000_000_000)):
        pairs = places * (places - 1) // 2
        flops = 2 * E * pairs
        times = " | ".join(_seconds(flops / world / GPU_FLOPS) for world in LINK_BYTES)
        lines.append(f"| {name} | {pairs:.2g} | {flops:.2g} | {times} |")
    return lines


def _measured() -> list[str]:
    loss = json.loads((RESULTS / LOSS_RESULT).read_text())
    row = _row(loss, "none")
    flops = row["n"] * row["m"] * (4 * (row["d"] + row["e"]) + 4 * row["d"])
    variogram = json.loads((RESULTS / VARIOGRAM_RESULT).read_text())
    exact = _row(variogram, "exact")
    pairs = exact["n"] * (exact["n"] - 1) // 2
    per_second = pairs / exact["median_s"]
    return [
        f"Measured, {loss['machine']['processor']}, {loss['machine']['threads']} threads: "
        f"{flops / row['median_s'] / 1e9:.0f} GFLOP/s in the two passes of the loss ({LOSS_RESULT}, case "
        f"`none`); {variogram['machine']['processor']}, {variogram['machine']['threads']} threads: "
        f"{per_second / 1e6:.0f} million pairs/s in the semivariogram ({VARIOGRAM_RESULT}, case `exact`), "
        f"which makes {_seconds(4_900_000**2 / 2 / per_second / 64)} for OSV5M on 64 such machines."
    ]


def _row(result: dict, case: str) -> dict:
    (row,) = (r for r in result["times"] if r["case"] == case and r["contender"] == "native")
    return row


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _seconds(seconds: float) -> str:
    for length, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds * 1000)} ms"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def written(document: str) -> str:
    """The document with the tables of today's formulas."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.split(END)[1]


def main() -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.plan", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT}")
    if parser.parse_args().write:
        DOCUMENT.write_text(written(DOCUMENT.read_text()))
    else:
        print(tables(), end="")


if __name__ == "__main__":
    main()
