"""The result as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.table import machine_line, milliseconds, table, verdict

HEAD = ["case", "what", "N × E", "bins", "contender", "median (quartiles) ms", "× floor", "ratio (bar)"]
HEAD += ["error (allowed), moved pairs"]
PEAK_HEAD = ["N × E", "bins", "pairs", "contender", "extra MiB", "± MiB", "bar", "of the authors' way (bar)"]


def markdown(result: dict[str, Any]) -> str:
    """Tables of time and of memory under a line on the machine and one on the bars."""
    times, memory = result["times"], result["memory"]
    bars = [row["met"] for row in (*times, *memory) if row["met"] is not None]
    lines = [f"# Semivariogram: {result['machine']['processor']}, {result['date']}", ""]
    lines += [machine_line(result["machine"], bars), ""]
    if times:
        lines += [
            "Times of one interleaved run per case, float32. `half product` is V·Vᵀ of the upper triangle "
            "alone, by `torch.mm` in blocks of rows. Ours is compared with the rival's result, or, where "
            "it has none, with all pairs in float64; no ratio is given for a row that fails the comparison. "
            "`floor` is the time of the products of the pairs that come into a bin, at the rate of square "
            "products taken in the same run.",
            "",
            *table(HEAD, times, _time_cells),
            "",
        ]
    if memory:
        lines += [
            "Peak resident memory beyond the field itself, in fresh processes; ± is the difference between "
            "two equal baseline processes.",
            "",
            *table(PEAK_HEAD, memory, _peak_cells),
            "",
        ]
    return "\n".join(lines)


def _time_cells(row: dict[str, Any]) -> list[str]:
    if row["failure"]:
        took = row["failure"].replace("|", "\\|")
    elif row["median_s"] is None:
        took = "–"
    else:
        low, high = row["quartiles_s"]
        took = f"{milliseconds(row['median_s'])} ({milliseconds(low)} to {milliseconds(high)})"
    ratio = error = "–"
    if row["role"] == "ours":
        if row["ratio"] is not None:
            word = "× the time of" if row["is_ceiling"] else "× faster than"
            ratio = f"{row['ratio']:.3g} {word} {row['against']}"
        if row["bar"] is not None:
            sign = "≤" if row["is_ceiling"] else "≥"
            ratio += f" ({sign} {row['bar']:g}: {verdict(row['met'])})"
        if row["error"] is not None:
            wrong = "" if row["right"] else " **WRONG**"
            error = f"{row['error']:.1e} ({row['error_allowed']:.0e}), {row['moved_pairs']}{wrong}"
    places = ", real gallery places" if row["places"] == "gallery" else ""
    return [
        row["case"],
        row["what"] + places,
        f"{row['n']:,} × {row['e']}",
        f"{row['bins']:,}",
        row["contender"] + (f" ({row['note']})" if row["note"] else ""),
        took,
        "–" if row["to_floor"] is None else f"{row['to_floor']:,.3g}",
        ratio,
        error,
    ]


def _peak_cells(row: dict[str, Any]) -> list[str]:
    measured = row["failure"] is None
    share = "–"
    if row["share"] is not None:
        share = f"{row['share']:.3f} (≤ {row['bar_share']:g}: {verdict(row['share'] <= row['bar_share'])})"
    bar = "–"
    if row["bar_mib"] is not None:
        met = measured and row["extra_mib"] <= row["bar_mib"]
        bar = f"≤ {row['bar_mib']:g}: {verdict(met)}"
    return [
        f"{row['n']:,} × {row['e']}",
        f"{row['bins']:,}",
        "all" if row["max_lag_km"] is None else f"within {row['max_lag_km']:g} km",
        row["contender"],
        f"{row['extra_mib']:.1f}" if measured else row["failure"].replace("|", "\\|"),
        f"{row['resolution_mib']:.1f}" if measured else "–",
        bar,
        share,
    ]
