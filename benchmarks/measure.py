"""One case: a warm-up round that checks every contender, then the timed rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases import FLOOR, NAIVE, PRODUCTS, Case
from benchmarks.contenders import Outcome, Run, backend_names, loss_run, makers
from benchmarks.floor import matrix_rate
from benchmarks.naive import naive_info_nce
from benchmarks.problem import make_problem
from benchmarks.timing import interleaved_seconds

# error allowed beyond that of naive torch in the same dtype, relative to the largest entry
TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 1e-2}


def largest_error(outcome: Outcome, oracle: Outcome, n: int) -> float:
    """Largest error of the loss and of each gradient, each relative to the oracle's largest entry.

    The rows of dy are judged apart for positives (the first n) and negatives: against the large gradients
    of the positives an all-zero gradient of the negatives would pass.
    """
    pairs = list(zip(outcome, oracle, strict=True))
    if len(pairs) > 1:
        loss, dx, (dy, dy_oracle), ds = pairs
        parts = [(dy[:n], dy_oracle[:n]), (dy[n:], dy_oracle[n:])]
        pairs = [loss, dx, ds, *(part for part in parts if len(part[0]))]
    errors = [(got.double() - want.double()).abs().max() / want.double().abs().max() for got, want in pairs]
    return float(torch.stack(errors).max())  # NaN where any error is


def measure_case(
    case: Case,
    device: torch.device,
    *,
    budget_s: float,
    on_round: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Rows of the table for one case: plain numbers, one dict per contender.

    A contender that fails keeps its row, with the reason under "failure" and no times. Times are also held
    against the rate of square products, taken here.
    """
    problem = make_problem(case.n, case.m, case.d, case.e, dtype=case.dtype, device=device)
    runs: dict[str, Run] = {}
    outcomes: dict[str, Outcome] = {}
    failures: dict[str, str] = {}
    for name, make in makers(case, problem).items():
        try:
            run = make()
            outcomes[name] = run()
            runs[name] = run
        except (
            Exception
        ) as error:  # a contender that is not installed or runs out of memory spoils its row only
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    errors, allowed = _errors(case, problem, outcomes)
    del outcomes
    rate = matrix_rate(device, case.dtype)
    seconds = interleaved_seconds(runs, device=device, budget_s=budget_s, on_round=on_round)

    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    backends = backend_names(case, device)
    rows = []
    for name in (*runs, *failures):
        right = errors[name] <= allowed if name in errors else None  # None: not checked
        timed = name in medians and right is not False
        speedups = {
            rival: medians[rival] / medians[name]
            for rival in case.rivals
            if timed and name in backends and rival in medians and errors.get(rival, np.inf) <= allowed
        }
        to_products = medians[name] / medians[PRODUCTS] if timed and PRODUCTS in medians else None
        floor_s = case.floor_flops / rate
        to_floor = medians[name] / floor_s if timed else None
        got = {**speedups, PRODUCTS: to_products, FLOOR: to_floor}
        rows.append(
            {
                "case": case.name,
                "n": case.n,
                "m": case.m,
                "d": case.d,
                "e": case.e,
                "dtype": str(case.dtype).removeprefix("torch."),
                "policy": case.policy.kind,
                "pass": "forward + backward" if case.backward else "forward",
                "reduction": case.reduction,
                "symmetric": case.symmetric,
                "workspace_mb": case.workspace_mb,
                "contender": name,
                "role": "ours" if name in backends else "products" if name == PRODUCTS else "rival",
                "seconds": seconds.get(name, []),
                "median_s": medians.get(name),
                "quartiles_s": np.quantile(seconds[name], [0.25, 0.75]).tolist() if name in seconds else None,
                "error": errors.get(name),
                "error_allowed": allowed if name in errors else None,
                "right": right,
                "failure": failures.get(name),
                "to_products": to_products,
                "floor_flops": case.floor_flops,
                "floor_s": floor_s,
                "to_floor": to_floor,
                "speedups": speedups,
                "bars": [
                    {
                        "against": against,
                        "wanted": bar,
                        "got": got.get(against),
                        "met": _met(against, bar, got),
                    }
                    for against, bar in case.bars.items()
                    if backends and name == backends[0]  # the one that users get
                ],
            }
        )
    return rows


def _errors(case: Case, problem: Any, outcomes: dict[str, Outcome]) -> tuple[dict[str, float], float]:
    """Error of every contender against naive torch in float32, and the error allowed.

    Empty where naive torch itself cannot run, and where the case has no rival to be checked against.
    """
    if not case.rivals:
        return {}, 0.0
    if case.dtype == torch.float32:
        if NAIVE not in outcomes:
            return {}, 0.0
        oracle = outcomes[NAIVE]
    else:
        try:
            oracle = loss_run(naive_info_nce, case, problem.float())()
        except torch.OutOfMemoryError:
            return {}, 0.0
    errors = {name: largest_error(outcome, oracle, case.n) for name, outcome in outcomes.items() if outcome}
    return errors, TOLERANCE[case.dtype] + errors.get(NAIVE, 0.0)


def _met(against: str, bar: float, got: dict[str, float | None]) -> bool:
    ratio = got.get(against)
    if ratio is None:
        return False
    return ratio <= bar if against in (PRODUCTS, FLOOR) else ratio >= bar
