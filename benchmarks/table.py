"""The result as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.cases import COMPILED, DEFAULT_WORKSPACE, FLOOR, NAIVE, OPEN_CLIP, PRODUCTS

RIVALS = (NAIVE, COMPILED, OPEN_CLIP)
HEAD = ["case", "what", "N × M", "dtype", "contender", "median (quartiles) ms", "× products"]
MEMORY_HEAD = [
    "N × M",
    "dtype",
    "policy and options",
    "contender",
    "extra MiB",
    "± MiB",
    "bar",
    "first use MiB",
]
FLOOR_WORDS = (
    " `floor` is the time of the products with nothing made twice, at the rate of square products taken in "
    "the same run: "
)


def markdown(result: dict[str, Any]) -> str:
    """Tables of time and of memory under a line on the machine and one on the bars."""
    machine, times, memory = result["machine"], result["times"], result["memory"]
    bars = [bar["met"] for row in times for bar in row["bars"]]
    bars += [row["met"] for row in memory if row["met"] is not None]
    lines = [
        f"# Benchmarks: {machine['processor']}, {result['date']}",
        "",
        machine_line(machine, bars),
        "",
    ]
    if times:
        bounded = any(DEFAULT_WORKSPACE in row["speedups"] for row in times)
        rivals = (*RIVALS, DEFAULT_WORKSPACE) if bounded else RIVALS
        head = [
            *HEAD,
            "× floor",
            *(f"faster than {rival}" for rival in rivals),
            "error (allowed)",
        ]
        lines += [
            "Times of one interleaved run per case. `products` are the case's matrix products alone; naive "
            "torch with policy `none` is `F.cross_entropy`. In brackets: the bar of the default backend. "
            "No ratio is given for a row whose error is above the allowed one." + FLOOR_WORDS + _rates(times),
            "",
            *table(head, times, lambda row: _time_cells(row, rivals)),
            "",
        ]
    if memory:
        lines += [
            "Peak memory of forward + backward (`mean`) beyond inputs and gradients, on a CPU in fresh "
            "processes; ± is the difference between two equal baseline processes. What the first call on "
            "8 × 8 pairs adds, the code it loads, stands apart.",
            "",
            *table(MEMORY_HEAD, memory, _memory_cells),
            "",
        ]
    return "\n".join(lines)


def machine_line(machine: dict[str, Any], bars: list[bool]) -> str:
    """What the numbers were taken on, and how many of the bars they meet."""
    versions = machine["versions"]
    return (
        f"{machine['threads']} threads of {machine['cores']} cores, Python {versions['python']}, torch "
        f"{versions['torch']}, "
        f"commit {machine['commit'][:12]}{' with changes' * machine['commit'].endswith('-dirty')}."
        + (f" Bars met: {sum(bars)} of {len(bars)}." if bars else "")
    )


def table(head: list[str], rows: list[dict[str, Any]], cells: Any) -> list[str]:
    """Lines of a Markdown table; `cells` makes those of a row."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *(cells(row) for row in rows))]


def _rates(rows: list[dict[str, Any]]) -> str:
    rates: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(row["dtype"], []).append(row["floor_flops"] / row["floor_s"] / 1e9)
    words = [f"{min(some):,.0f} to {max(some):,.0f} GFLOP/s in {dtype}" for dtype, some in rates.items()]
    return ", ".join(words) + "."


def _time_cells(row: dict[str, Any], rivals: tuple[str, ...]) -> list[str]:
    bars = {bar["against"]: bar for bar in row["bars"]}

    def ratio(value: float | None, against: str) -> str:
        text = "–" if value is None else f"{value:.2f}"
        if against not in bars:
            return text
        sign = "≤" if against in (PRODUCTS, FLOOR) else "≥"
        return f"{text} ({sign} {bars[against]['wanted']:g}: {verdict(bars[against]['met'])})"

    if row["failure"]:
        took = row["failure"].replace("|", "\\|")
    else:
        low, high = row["quartiles_s"]
        took = f"{milliseconds(row['median_s'])} ({milliseconds(low)} to {milliseconds(high)})"
    error = "not checked"
    if row["contender"] == PRODUCTS or row["failure"]:
        error = "–"
    elif row["right"] is not None:
        error = f"{row['error']:.1e} ({row['error_allowed']:.0e}){'' if row['right'] else ' **WRONG**'}"
    options = [row["pass"], f"policy {row['policy']}"]
    options += [f"reduction {row['reduction']}"] * (row["reduction"] != "mean")
    options += ["symmetric"] * row["symmetric"]
    options += [f"workspace_mb={row['workspace_mb']}"] * (row["workspace_mb"] is not None)
    return [
        row["case"],
        ", ".join(options),
        f"{row['n']:,} × {row['m']:,}",
        row["dtype"],
        row["contender"],
        took,
        ratio(row["to_products"], PRODUCTS),
        ratio(row["to_floor"], FLOOR),
        *(ratio(row["speedups"].get(rival), rival) for rival in rivals),
        error,
    ]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    measured = row["failure"] is None
    return [
        f"{row['n']:,} × {row['m']:,}",
        row["dtype"],
        row["policy"] + (f", workspace_mb={row['workspace_mb']}" if row["workspace_mb"] is not None else ""),
        row["contender"],
        f"{row['extra_mib']:.1f}" if measured else row["failure"].replace("|", "\\|"),
        f"{row['resolution_mib']:.1f}" if measured else "–",
        "–" if row["bar_mib"] is None else f"≤ {row['bar_mib']:g}: {verdict(row['met'])}",
        f"{row['first_use_mib']:.1f}" if measured else "–",
    ]


def milliseconds(seconds: float) -> str:
    """Four digits of a time."""
    return f"{seconds * 1e3:,.4g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"


def verdict(met: bool) -> str:
    """The word for a bar."""
    return "met" if met else "MISSED"
