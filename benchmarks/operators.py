"""The operators beside the loss and the semivariogram: distances, top-k, batches, reading of embeddings.

Each case runs its contenders in turn; the first is what the others are checked against. The floor is what
the case's matrix products take at the rate of square products, or the bytes that it must move at the rate of
a copy, whichever is longer; both rates are taken in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Sizes
from benchmarks.floor import copy_rate, matrix_rate
from benchmarks.operator_cases import OPERATORS, SIZES, Operator, Outcome
from benchmarks.operator_memory import measure_peaks
from benchmarks.progress import Progress
from benchmarks.table import machine_line, milliseconds, table
from benchmarks.timing import interleaved_seconds

CPU = torch.device("cpu")
HEAD = ["operator", "size", "contender", "median (quartiles) ms", "× floor", "faster", "extra MiB (±)"]
HEAD += ["error (allowed)"]


def measure(_: list[str], device: torch.device, sizes: Sizes, seconds: float) -> dict[str, Any]:
    """Rows of the table: plain numbers, one dict per case and contender.

    Args:
        sizes: which sizes.
        device: the CPU.
        seconds: timed rounds of a case of the loss; a case here gets a quarter of it.
    """
    rates = matrix_rate(device, torch.float32), copy_rate()
    cases = [(make, n, m) for n, m in SIZES[sizes] for make in OPERATORS]
    rows = []
    with Progress(2 * len(cases)) as progress:
        for make, n, m in cases:
            progress.begin(f"{make.__name__} {n:,} × {m:,}")
            with make(n, m) as operator:
                of_case = measured(operator, seconds / 4, rates, progress.rounds)
            progress.begin(f"memory of {make.__name__} {n:,} × {m:,}")
            names = [row["contender"] for row in of_case if row["failure"] is None]
            peaks = {} if sizes == "quick" else measure_peaks(make, n, m, names)
            rows += [{**row, "memory": peaks.get(row["contender"])} for row in of_case]
    return {"times": rows, "memory": []}


def measured(
    operator: Operator, budget_s: float, rates: tuple[float, float], on_round: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Rows of one case; `rates` are those of square products in FLOP/s and of a copy in bytes/s."""
    oracle_name = next(iter(operator.rivals))
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, str] = {}
    for name, run in operator.runs.items():
        try:
            outcomes[name] = run()
        except Exception as reason:  # a contender that fails spoils its own row only
            failures[name] = f"{type(reason).__name__}: {reason}".splitlines()[0]
    oracle = outcomes.get(oracle_name)
    errors = {} if oracle is None else {name: operator.error(got, oracle) for name, got in outcomes.items()}
    timed = {name: run for name, run in operator.runs.items() if name in outcomes}
    del outcomes
    seconds = interleaved_seconds(timed, device=CPU, budget_s=budget_s, on_round=on_round)
    medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
    right = {name: error <= operator.allowed for name, error in errors.items()}
    floor_s = max(operator.products_flops / rates[0], operator.moved_bytes / rates[1])
    return [
        {
            "case": operator.name,
            "size": operator.size,
            "contender": name,
            "role": "ours" if name in operator.ours else "rival",
            "seconds": seconds.get(name, []),
            "median_s": medians.get(name),
            "quartiles_s": np.quantile(seconds[name], [0.25, 0.75]).tolist() if name in seconds else None,
            "error": errors.get(name),
            "error_allowed": operator.allowed,
            "right": right.get(name),
            "failure": failures.get(name),
            "floor_s": floor_s,
            "to_floor": medians[name] / floor_s if right.get(name) else None,
            "speedups": {
                rival: medians[rival] / medians[name]
                for rival in operator.rivals
                if name in operator.ours and right.get(name) and right.get(rival)
            },
        }
        for name in operator.runs
    ]


def markdown(result: dict[str, Any]) -> str:
    """A table under a line on the machine."""
    return "\n".join(
        [
            f"# Operators: {result['machine']['processor']}, {result['date']}",
            "",
            machine_line(result["machine"], []),
            "",
            "Times of one interleaved run per case. The first contender of a case is what the others are "
            "checked against; no ratio is given for a row whose error is above the allowed one. `floor` is "
            "the time of the matrix products at the rate of square products, or, where that is longer, of "
            "the inputs and results at the rate of a copy, both taken in the same run. Extra MiB: peak "
            "resident memory beyond the inputs, the result included, in fresh processes; ± is the difference "
            "between two equal baseline processes.",
            "",
            *table(HEAD, result["times"], _cells),
            "",
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    memory, took_mib = row["memory"], "–"
    if memory is not None and memory["failure"]:
        took_mib = memory["failure"].replace("|", "\\|")
    elif memory is not None:
        took_mib = f"{memory['extra_mib']:.1f} (± {memory['resolution_mib']:.1f})"
    if row["failure"]:
        took, error = row["failure"].replace("|", "\\|"), "–"
    else:
        low, high = row["quartiles_s"]
        took = f"{milliseconds(row['median_s'])} ({milliseconds(low)} to {milliseconds(high)})"
        error = "not checked"
        if row["right"] is not None:
            error = f"{row['error']:.1e} ({row['error_allowed']:g}){'' if row['right'] else ' **WRONG**'}"
    return [
        row["case"],
        row["size"],
        row["contender"],
        took,
        "–" if row["to_floor"] is None else f"{row['to_floor']:,.3g}",
        ", ".join(f"{ratio:.2f} × {rival}" for rival, ratio in row["speedups"].items()) or "–",
        took_mib,
        error,
    ]
